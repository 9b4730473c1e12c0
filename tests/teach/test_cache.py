"""The cache: rows come back by id in any order, and whatever does not belong is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    rows = fill(tmp_path)
    path = tmp_path / "shard-00000.safetensors"
    tensors = load_file(path)
    tensors["logits"][0, 0] = float("nan")
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
    cache.write_shard(tmp_path, 0, WHO, ids, {"logits": torch.zeros(3, 5), "hidden": hidden})
    store = cache.Cache(tmp_path, WHO)
    torch.testing.assert_close(store.read("hidden", ids[::-1]), hidden.flip(0))
    assert store.read("logits", ids).shape == (3, 5)
