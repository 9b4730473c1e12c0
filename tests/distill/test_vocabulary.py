"""Trimmed vocabularies: covered text keeps its pieces id for id, other text falls back, every reader agrees."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgekd.distill import vocabulary
from edgekd.errors import BadInput

SEEN = [
    "the old river runs past the mill and the new bridge",
    "a silver coin, an iron nail and a tin cup were found near the river",
    "please tell me more about the bridge; it was built of iron in 1881!",
]
MORE = [
    "the weather station measured temperatures below zero",
    "unbelievable quantities of porridge were eaten by travellers",
    "Zwölf größere Brücken – naïve façade",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(SEEN + MORE, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def bytelevel() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        SEEN + MORE, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL[:-1], initial_alphabet=alphabet)
    )
    made.add_special_tokens(["<mask>"])  # behind the vocabulary, as RoBERTa has it
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        SEEN + MORE,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


MAKERS = [wordpiece, bytelevel, unigram]


def trimmed(old: Tokenizer, texts: list[str], coverage: float = 1.0) -> tuple[vocabulary.Trimmed, Tokenizer]:
    counts = vocabulary.count(old.encode(text).ids for text in texts)
    made = vocabulary.trim(json.loads(old.to_str()), counts, coverage)
    return made, Tokenizer.from_str(json.dumps(made.tokenizer))


@pytest.mark.parametrize("maker", MAKERS)
def test_covered_text_keeps_its_ids_through_kept(maker) -> None:  # type: ignore[no-untyped-def]
    old = maker()
    made, new = trimmed(old, SEEN)
    assert made.kept == sorted(set(made.kept))
    assert new.get_vocab_size() == len(made.kept) < old.get_vocab_size()
    for token, id in new.get_vocab().items():
        assert old.token_to_id(token) == made.kept[id], token
    for text in SEEN:
        assert [made.kept[id] for id in new.encode(text).ids] == old.encode(text).ids
    pair = (SEEN[0], SEEN[1])
    assert [made.kept[id] for id in new.encode(*pair).ids] == old.encode(*pair).ids


@pytest.mark.parametrize("maker", MAKERS)
def test_other_text_falls_back_to_pieces_that_say_the_same(maker) -> None:  # type: ignore[no-untyped-def]
    old = maker()
    made, new = trimmed(old, SEEN)
    text = "unbelievable temperatures"
    before, after = old.encode(text), new.encode(text)
    assert len(after.ids) > len(before.ids)
    spelled = [token.removeprefix("##").removeprefix("▁").removeprefix("Ġ") for token in after.tokens[1:-1]]
    assert "".join(spelled) == text.replace(" ", "")
    found = vocabulary.outside(old, new, made.kept, [SEEN[0], text])
    assert found == {"texts": 2, "same": 0.5, "more_pieces": 0.5, "unknown": 0.0}


def test_a_byte_level_vocabulary_spells_any_text() -> None:
    _, new = trimmed(bytelevel(), SEEN)
    for text in [*MORE, "日本語 🎉\u2028\x00"]:
        assert new.decode(new.encode(text).ids) == text


def test_characters_that_are_gone_are_counted_as_unknown() -> None:
    old = wordpiece()
    made, new = trimmed(old, SEEN)
    found = vocabulary.outside(old, new, made.kept, ["größere façade – it", "the river", "日本"])
    assert found["unknown"] == pytest.approx(1 / 3)  # 日本 is unknown to both
    assert found["same"] == pytest.approx(2 / 3)


def test_coverage_keeps_the_most_frequent() -> None:
    tokenizer = json.loads(
        Tokenizer(models.WordPiece({"[UNK]": 0, "aa": 1, "bb": 2, "cc": 3}, unk_token="[UNK]")).to_str()
    )
    counts = {0: 100, 1: 10, 2: 70, 3: 20}  # [UNK] is no text
    assert vocabulary.trim(tokenizer, counts, 0.7).kept == [0, 2]
    assert vocabulary.trim(tokenizer, counts, 0.71).kept == [0, 2, 3]
    assert vocabulary.trim(tokenizer, counts, 1.0).kept == [0, 1, 2, 3]


def test_merges_that_build_a_kept_token_stay() -> None:
    pieces = {token: id for id, token in enumerate(["x", "y", "z", "é", "yz", "xyz", "xy", "zé"])}
    merges = [("y", "z"), ("x", "yz"), ("x", "y"), ("z", "é")]
    tokenizer = json.loads(Tokenizer(models.BPE(pieces, merges)).to_str())
    made = vocabulary.trim(tokenizer, {5: 1}, 1.0)
    assert [token for token in made.tokenizer["model"]["vocab"]] == ["x", "y", "z", "yz", "xyz"]
    assert [tuple(merge) for merge in made.tokenizer["model"]["merges"]] == [("y", "z"), ("x", "yz")]


def test_a_vocabulary_is_filled_up_with_the_commonest_others() -> None:
    words = {"[UNK]": 0, "aa": 1, "bb": 2, "cc": 3, "dd": 4}
    tokenizer = json.loads(Tokenizer(models.WordPiece(words, unk_token="[UNK]")).to_str())
    others = {1: 99, 2: 5, 3: 7, 4: 7}
    sizes = {size: vocabulary.trim(tokenizer, {1: 1}, 1.0, others=others, size=size).kept for size in range(6)}
    assert sizes[0] == sizes[2] == [0, 1]  # what the text needs stays, however small the size
    assert sizes[3] == [0, 1, 3] and sizes[4] == [0, 1, 3, 4] and sizes[5] == [0, 1, 2, 3, 4]
    pieces = {token: id for id, token in enumerate(["x", "y", "z", "yz", "xyz"])}
    bpe = json.loads(Tokenizer(models.BPE(pieces, [("y", "z"), ("x", "yz")])).to_str())
    made = vocabulary.trim(bpe, {0: 1}, 1.0, others={4: 1}, size=len(vocabulary.trim(bpe, {0: 1}, 1.0).kept) + 1)
    assert "yz" in made.tokenizer["model"]["vocab"]  # and what a token is merged from comes with it


def test_word_level_is_refused() -> None:
    tokenizer = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(BadInput, match="WordLevel"):
        vocabulary.trim(tokenizer, {0: 1}, 1.0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_the_written_folder_reads_alike_everywhere(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer

    maker, kind_class = {
        "bert": (wordpiece, BertTokenizer),
        "roberta": (bytelevel, RobertaTokenizer),
        "xlm-roberta": (unigram, XLMRobertaTokenizer),
    }[kind]
    old = maker()
    source, out = tmp_path / "old", tmp_path / "new"
    saved = kind_class.from_pretrained(_folder(old, tmp_path / "raw"))
    saved.save_pretrained(source)
    (source / "vocab.txt").write_text("stale")
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(old.token_to_id(t)): {"content": t} for t in _specials(old)}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    made, _ = trimmed(Tokenizer.from_file(str(source / "tokenizer.json")), SEEN)
    vocabulary.write(source, made, out)
    new, auto = Tokenizer.from_file(str(out / "tokenizer.json")), AutoTokenizer.from_pretrained(out)
    assert len(auto) == len(made.kept)
    for text in SEEN + MORE:
        assert auto(text)["input_ids"] == new.encode(text).ids
    for text in SEEN:
        assert [made.kept[id] for id in auto(text)["input_ids"]] == saved(text)["input_ids"]
    assert auto.pad_token_id == made.kept.index(saved.pad_token_id)
    decoder = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {new.id_to_token(int(id)) for id in decoder} == set(_specials(old))
    assert not (out / "vocab.txt").exists()


def _folder(tokenizer: Tokenizer, out: Path) -> Path:
    out.mkdir()
    tokenizer.save(str(out / "tokenizer.json"))
    return out


def _specials(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def test_a_real_vocabulary_and_real_text(banking77: dict[str, Path]) -> None:
    with banking77["train"].open(newline="", encoding="utf-8") as stream:
        train = [row["text"] for row in csv.DictReader(stream)]
    with banking77["test"].open(newline="", encoding="utf-8") as stream:
        test = [row["text"] for row in csv.DictReader(stream)]
    old = Tokenizer.from_file(str(banking77["teacher"] / "tokenizer.json"))
    old.no_truncation()
    made, new = trimmed(old, train)
    assert len(made.kept) < 2700  # of 30,522; the text itself uses 2,421
    assert all([made.kept[id] for id in new.encode(text).ids] == old.encode(text).ids for text in train[::20])
    found = vocabulary.outside(old, new, made.kept, test)
    assert found["texts"] == 3080
    assert found["same"] > 0.9
    assert found["unknown"] < 0.002
    half, _ = trimmed(old, train, 0.9)
    assert len(half.kept) < len(made.kept) / 2
