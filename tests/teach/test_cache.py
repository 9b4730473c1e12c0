"""The cache: rows come back by id in any order, and whatever does not belong is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, ViTConfig

from edgekd.errors import BadInput
from edgekd.teach import cache

WHO = cache.identity(task="t", teacher="a")


def fill(folder: Path, identity: str = WHO) -> dict[str, torch.Tensor]:
    rows = {cache.sample_id(identity, f"text {n}"): torch.full((3,), float(n)) for n in range(10)}
    ids = list(rows)
    for number, part in enumerate((ids[:4], ids[4:])):
        cache.write_shard(folder, number, identity, part, {"logits": torch.stack([rows[i] for i in part])})
    return rows


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    rows = fill(tmp_path)
    ids = [list(rows)[i] for i in (9, 0, 5, 3, 0)]
    torch.testing.assert_close(cache.Cache(tmp_path, WHO).read("logits", ids), torch.stack([rows[i] for i in ids]))


def test_an_id_covers_text_tokenizer_teacher_and_length() -> None:
    base = {"task": "t", "teacher": "a", "tokenizer": "b", "max_length": 8}
    changed = [base | {name: "x"} for name in base]
    ids = {cache.sample_id(cache.identity(**parts), text) for parts in (base, *changed) for text in ("one", "two")}
    assert len(ids) == 10


def test_a_missing_sample_another_teacher_and_broken_files_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    store = cache.Cache(tmp_path, WHO)
    with pytest.raises(BadInput, match="1 of 1 samples"):
        store.read("logits", [cache.sample_id(WHO, "never seen")])
    with pytest.raises(BadInput, match="another teacher"):
        cache.Cache(tmp_path, cache.identity(task="t", teacher="other"))
    (tmp_path / "shard-00001.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(BadInput, match="cannot be used"):
        cache.Cache(tmp_path, WHO)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    rows = fill(tmp_path)
    path = tmp_path / "shard-00000.safetensors"
    tensors = load_file(path)
    tensors["logits"][1, 1] = bad
    save_file(tensors, path, {"edgekd": json.dumps({"schema": cache.SCHEMA, "identity": WHO})})
    with pytest.raises(BadInput, match="not finite"):
        cache.Cache(tmp_path, WHO).read("logits", list(rows))


def test_a_sample_twice_a_missing_kind_and_lost_rows_are_refused(tmp_path: Path) -> None:
    ids = [cache.sample_id(WHO, text) for text in ("a", "b")]
    cache.write_shard(tmp_path / "twice", 0, WHO, ids, {"logits": torch.zeros(2, 3)})
    cache.write_shard(tmp_path / "twice", 1, WHO, ids[:1], {"logits": torch.zeros(1, 3)})
    with pytest.raises(BadInput, match="twice"):
        cache.Cache(tmp_path / "twice", WHO)
    cache.write_shard(tmp_path / "one", 0, WHO, ids, {"logits": torch.zeros(2, 3)})
    with pytest.raises(BadInput, match="hidden"):
        cache.Cache(tmp_path / "one", WHO).read("hidden", ids)
    path = tmp_path / "one" / "shard-00000.safetensors"
    tensors = load_file(path) | {"logits": torch.zeros(1, 3)}
    save_file(tensors, path, {"edgekd": json.dumps({"schema": cache.SCHEMA, "identity": WHO})})
    with pytest.raises(BadInput, match="1 rows for 2 samples"):
        cache.Cache(tmp_path / "one", WHO).read("logits", ids)


def test_several_kinds_of_knowledge_lie_in_one_shard(tmp_path: Path) -> None:
    ids = [cache.sample_id(WHO, text) for text in "abc"]
    hidden = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    cache.write_shard(tmp_path, 0, WHO, ids, {"logits": torch.full((3, 5), 1 / 3), "hidden:1:cls": hidden})
    store = cache.Cache(tmp_path, WHO)
    torch.testing.assert_close(store.read("hidden:1:cls", ids[::-1]), hidden.flip(0).half())
    assert store.read("logits", ids).equal(torch.full((3, 5), 1 / 3))  # logits keep every bit


def ragged(folder: Path) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    rows = {
        cache.sample_id(WHO, f"text {n}"): torch.randn(n % 4, 5, generator=random).half().float() for n in range(11)
    }
    ids = list(rows)
    for number, part in enumerate((ids[:4], ids[4:5], ids[5:])):
        logits, tokens = torch.zeros(len(part), 2), [rows[i] for i in part]
        cache.write_shard(folder, number, WHO, part, {"logits": logits, "hidden:2:tokens": tokens})
    return rows


def test_rows_of_any_length_come_back_by_id(tmp_path: Path) -> None:
    rows = ragged(tmp_path)
    order = [10, 4, 4, 0, 7, 3, 8, 1]  # 4 tokens give none: lengths 2 0 0 0 3 3 0 1
    ids = [list(rows)[i] for i in order]
    found = cache.Cache(tmp_path, WHO).read("hidden:2:tokens", ids)
    assert len(found) == len(order)
    for one, row in zip(ids, found, strict=True):
        torch.testing.assert_close(row.float(), rows[one], rtol=0, atol=0)
    torch.testing.assert_close(found[4].float(), rows[ids[4]], rtol=0, atol=0)
    again = tmp_path / "again"
    cache.write_shard(again, 0, WHO, sorted(set(ids)), {"hidden:2:tokens": [rows[i] for i in sorted(set(ids))]})
    assert cache.has_shard(again, 0) and not cache.has_shard(again, 1)


def test_a_ragged_kind_whose_lengths_do_not_add_up_is_refused(tmp_path: Path) -> None:
    rows = ragged(tmp_path)
    path = tmp_path / "shard-00002.safetensors"
    tensors = load_file(path)
    tensors["hidden:2:tokens/lengths"][0] += 1
    save_file(tensors, path, {"edgekd": json.dumps({"schema": cache.SCHEMA, "identity": WHO})})
    with pytest.raises(BadInput, match="do not add up"):
        cache.Cache(tmp_path, WHO).read("hidden:2:tokens", list(rows))


def test_a_cache_says_which_samples_have_which_kinds(tmp_path: Path) -> None:
    ids = [cache.sample_id(WHO, text) for text in "abc"]
    cache.write_shard(tmp_path, 0, WHO, ids[:2], {"logits": torch.zeros(2, 3), "query:1": [torch.zeros(2, 4)] * 2})
    cache.write_shard(tmp_path, 1, WHO, ids[2:], {"logits": torch.zeros(1, 3)})
    store = cache.Cache(tmp_path, WHO)
    assert store.holds(["logits"], ids) and store.holds(["query:1", "logits"], ids[:2])
    assert not store.holds(["query:1"], ids)
    assert not store.holds(["query:1/lengths"], ids[:2]) and not store.holds(["ids"], ids)
    assert not store.holds(["logits"], [cache.sample_id(WHO, "other")])


def test_what_half_precision_cannot_hold_is_refused_before_it_is_written(tmp_path: Path) -> None:
    ids = [cache.sample_id(WHO, "a")]
    cache.write_shard(tmp_path, 0, WHO, ids, {"logits": torch.full((1, 2), 1e6)})
    with pytest.raises(BadInput, match=r"not finite in torch\.float16"):
        cache.write_shard(tmp_path, 1, WHO, ids, {"hidden:1:cls": torch.full((1, 2), 1e6)})
    with pytest.raises(ValueError, match="twice"):
        cache.write_shard(tmp_path, 1, WHO, ids * 2, {"logits": torch.zeros(2, 2)})
    assert not cache.has_shard(tmp_path, 1)


def test_the_estimate_is_what_the_files_take(tmp_path: Path) -> None:
    lengths = [3, 9, 5, 12] * 100
    config = BertConfig(hidden_size=48, num_attention_heads=6, num_labels=7)
    ids = [cache.sample_id(WHO, str(n)) for n in range(len(lengths))]
    knowledge = {
        "logits": torch.zeros(len(ids), 7),
        "hidden:2:cls": torch.zeros(len(ids), 48),
        "key:1": [torch.zeros(n, 48) for n in lengths],
        "attention:1": [torch.zeros(n * n, 6) for n in lengths],
    }
    cache.write_shard(tmp_path, 0, WHO, ids, knowledge)
    written = (tmp_path / "shard-00000.safetensors").stat().st_size
    found = cache.estimate(knowledge, len(ids), lengths[:8], config)
    assert 0 <= written - found < 1000  # the header
    assert cache.estimate(["hidden:1:tokens"], 5, [0], ViTConfig(image_size=32, patch_size=8, hidden_size=10)) == 5 * (
        16 + 17 * 10 * 2 + 8
    )
    cache.refuse(found, found / 1e9)
    with pytest.raises(BadInput, match=r"would take 0.000\d+ GB.*online"):
        cache.refuse(found, found / 1e9 / 2)


def test_pooled_features_of_a_usual_encoder_take_less_than_two_kilobytes_a_sample() -> None:
    config = BertConfig(hidden_size=384, num_labels=77)
    assert cache.estimate(["logits", "hidden:6:cls", "hidden:6:mean"], 1, [14], config) < 2000
