"""Made text: reproducible row by row, never a held-out text, and each method does what it says."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from edgekd.data import augment
from edgekd.errors import BadInput

WORDS = [f"w{n}" for n in range(60)]
MIX = {"delete": 0.35, "replace": 0.25, "rotate": 0.15, "splice": 0.25}


def texts(count: int = 200, longest: int = 12) -> list[str]:
    stream = random.Random(0)
    return [" ".join(stream.choices(WORDS, k=stream.randrange(4, longest))) for _ in range(count)]


def make(some: list[str], copies: int = 1, methods: dict[str, float] = MIX, seed: int = 0, **more) -> augment.Augmented:  # type: ignore[no-untyped-def]
    return augment.augment(some, copies, methods, seed, **{"exclude": [], "teacher": "nowhere", **more})


def test_text_follows_from_seed_row_and_copy() -> None:
    some = texts()
    assert make(some).texts == make(some).texts
    assert make(some).texts != make(some, seed=1).texts
    once, twice = make(some).texts, make(some, copies=2).texts
    assert twice[: len(once)] == once
    changed = make(["other words than before", *some[1:]], methods={"delete": 1, "rotate": 1}).texts
    before = make(some, methods={"delete": 1, "rotate": 1}).texts
    assert [one for one in changed if one.source] == [one for one in before if one.source]


def test_held_out_and_training_texts_never_come_out() -> None:
    some = [f"{a} {b}" for a in WORDS[:8] for b in WORDS[:8]]  # so short that collisions are the rule
    held = [f"  {a.upper()}   {b} " for a in WORDS[:8] for b in WORDS[8:12]] + [a for a in WORDS[:4]]
    made = make(some, copies=20, exclude=held)
    banned = {" ".join(text.split()).casefold() for text in (*some, *held)}
    found = [" ".join(one.text.split()).casefold() for one in made.texts]
    assert found and not banned & set(found)
    assert len(set(found)) == len(found)
    assert made.facts["made"] == len(found)
    assert made.facts["made"] + made.facts["dropped"] == 20 * len(some)
    free = {one.text for one in make(some, copies=20).texts}
    assert free & set(WORDS[:4])  # without the exclusion they do come out


def test_each_method_changes_what_it_says() -> None:
    some = texts()

    def pairs(method: str) -> list[tuple[list[str], list[str]]]:
        made = make(some, copies=3, methods={method: 1.0}).texts
        assert len(made) > 400 and {one.method for one in made} == {method}
        return [(some[one.source].split(), one.text.split()) for one in made]

    for before, after in pairs("delete"):
        rest = iter(before)
        assert len(after) < len(before) and all(word in rest for word in after)  # a subsequence
    replaced = pairs("replace")
    assert all(len(after) == len(before) and set(after) <= set(WORDS) for before, after in replaced)
    for before, after in pairs("rotate"):
        assert any(after == before[cut:] + before[:cut] for cut in range(1, len(before)))
    ends = {" ".join(text.split()[k:]) for text in some for k in range(len(text.split()))}
    for before, after in pairs("splice"):
        assert any(after[:k] == before[:k] and " ".join(after[k:]) in ends for k in range(1, len(before) + 1))


def test_shares_and_rates_are_those_asked_for() -> None:
    some = texts(3000, longest=30)
    made = make(some, methods=MIX).texts
    counts = Counter(one.method for one in made)
    assert made and all(abs(counts[name] / len(some) - share) < 0.05 for name, share in MIX.items())
    long = [" ".join(random.Random(n).choices(WORDS, k=100)) for n in range(300)]
    kept = [len(one.text.split()) for one in make(long, methods={"delete": 1}).texts]
    assert sum(kept) / len(kept) == pytest.approx(85, abs=1)
    changed = [
        sum(a != b for a, b in zip(long[one.source].split(), one.text.split(), strict=True))
        for one in make(long, methods={"replace": 1}).texts
    ]
    assert sum(changed) / len(changed) == pytest.approx(12 * 59 / 60, abs=1)


def test_replacements_are_drawn_from_all_words_alike() -> None:
    words = [f"w{n}" for n in range(9)]
    some = [f"{words[n % 9]} often often often" for n in range(4000)]
    new = Counter(
        after
        for one in make(some, methods={"replace": 1}).texts
        for before, after in zip(some[one.source].split(), one.text.split(), strict=True)
        if before != after and before == "often"
    )
    shares = [new[word] / new.total() for word in words]
    assert min(shares) > 0.08 and max(shares) < 0.15  # a ninth each; the commonest word is one of ten


def test_crossed_texts_change_over_at_a_shared_word() -> None:
    some = ["how do i top up my card", "why was my transfer declined", "where is the card i ordered"]
    made = {one.text for one in make(some, copies=200, methods={"cross": 1}).texts}
    whole = [text.split() for text in some]
    places = [(text, i) for text in whole for i in range(len(text))]
    possible = {" ".join(a[: i + 1] + b[j + 1 :]) for a, i in places for b, j in places if a[i] == b[j]} - set(some)
    assert made == possible and "how do i top up my transfer declined" in made


def test_borrowed_words_are_whole_words_of_the_teachers_vocabulary(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "howl", "corn", "we", "##ing", "7up", "w0"]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    some = texts()
    made = make(some, methods={"borrow": 1}, teacher=str(tmp_path)).texts
    assert len(made) > 150
    new = set()
    for one in made:
        before, after = some[one.source].split(), one.text.split()
        new |= {b for a, b in zip(before, after, strict=True) if a != b}
    assert new == {"howl", "corn"}  # not special, not a piece, alphabetic, three letters or more
    alone = [[word for word in words if word not in ("howl", "corn")], str(tmp_path / "none")]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(alone[0])}).save_pretrained(alone[1])
    with pytest.raises(BadInput, match="no whole words"):
        make(some, methods={"borrow": 1}, teacher=alone[1])
    assert make(some, copies=0, methods={"borrow": 1}, teacher="nowhere").texts == []


def test_neighbours_are_the_nearest_words_of_the_teachers_table(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "BertForSequenceClassification")  # one-letter and two-letter words are left alone
    words = [f"word{chr(97 + n)}" for n in range(20)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##p{n}" for n in range(39))]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(names)}).save_pretrained(folder)
    table = transformers.AutoModel.from_pretrained(folder).get_input_embeddings().weight.detach().numpy()[5:25]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    order = {
        word: [words[k] for k in sorted(set(range(20)) - {i}, key=lambda k: -(unit[i] @ unit[k]))]
        for i, word in enumerate(words)
    }
    some = ["(Worda? w1 7up wordb, wordc!", "w1 w2"]
    made = make(some, copies=300, methods={"neighbour": 1}, teacher=folder).texts
    assert {one.source for one in made} == {0}  # nothing in the other text has a neighbour
    seen: dict[str, Counter[str]] = {"worda": Counter(), "wordb": Counter(), "wordc": Counter()}
    for one in made:
        first, *fixed, second, third = one.text.split()
        assert fixed == ["w1", "7up"] and first[0] + first[-1] + second[-1] + third[-1] == "(?,!"
        for old, new in (("worda", first[1:-1]), ("wordb", second[:-1]), ("wordc", third[:-1])):
            seen[old].update({new.lower()} - {old})
    for word, drawn in seen.items():
        assert len(drawn) > 3 and drawn.keys() <= set(order[word][:10])
        assert drawn.most_common(1)[0][0] == order[word][0]


def test_texts_that_cannot_be_changed_are_left_out() -> None:
    made = make(["", "one", "   "], copies=5, methods={"delete": 1, "rotate": 1})
    assert made.texts == [] and made.facts["dropped"] == 15
    assert make(["one text"], methods={}).texts == make(["a b"], copies=0).texts == []


def test_unknown_methods_and_impossible_shares_are_refused() -> None:
    with pytest.raises(BadInput, match="Did you mean 'delete'"):
        make(["a b"], methods={"delet": 1})
    with pytest.raises(BadInput, match=r"share of 'delete' is -1"):
        make(["a b"], methods={"delete": -1})


TINY = {"vocab_size": 64, "max_position_embeddings": 24, "pad_token_id": 0}
BERT = {**TINY, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
DISTILBERT = {**TINY, "dim": 16, "n_heads": 2, "hidden_dim": 16, "n_layers": 1}


def checkpoint(folder: Path, architecture: str) -> str:
    """A random model with a word tokenizer: 5 special tokens, w0..w39, and the pieces ##p0..##p18."""
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    kind(kind.config_class(**(DISTILBERT if "Distil" in architecture else BERT))).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:40], *(f"##p{n}" for n in range(19))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("architecture", "has"),
    [
        ("BertForMaskedLM", True),
        ("BertForPreTraining", True),
        ("RobertaForMaskedLM", True),
        ("DistilBertForMaskedLM", True),
        ("ElectraForMaskedLM", True),
        ("BertForSequenceClassification", False),
        ("RobertaForSequenceClassification", False),
        ("DistilBertForTokenClassification", False),
        ("ElectraForPreTraining", False),
        ("GPT2LMHeadModel", False),
    ],
)
def test_the_head_is_found_by_the_parameters_names(tmp_path: Path, architecture: str, has: bool) -> None:
    if architecture == "GPT2LMHeadModel":
        config = transformers.GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1, n_positions=8)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    else:
        checkpoint(tmp_path, architecture)
    assert augment.has_mlm_head(str(tmp_path)) is has


def test_the_head_of_a_checkpoint_in_pieces_is_found_too(tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    model.save_pretrained(tmp_path, max_shard_size="4kB")
    assert not (tmp_path / "model.safetensors").exists()
    assert augment.has_mlm_head(str(tmp_path))
    assert not augment.has_mlm_head(str(tmp_path / "nowhere"))


def test_without_a_head_masked_lm_is_left_out_and_a_warning_says_so(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "BertForSequenceClassification")
    made = make(texts(20), methods={"masked-lm": 1, "rotate": 1}, teacher=folder)
    assert {one.method for one in made.texts} == {"rotate"}
    assert "no MLM head" in made.warnings[0] and "rotate" in made.warnings[0]
    alone = make(texts(20), methods={"masked-lm": 1}, teacher=folder)
    assert alone.texts == [] and "no text was made" in alone.warnings[0]


def test_masked_words_are_refilled_by_other_whole_words(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "BertForMaskedLM")
    stream = random.Random(1)
    some = [" ".join(stream.choices(WORDS[:40], k=stream.randrange(3, 40))) for _ in range(90)]
    some += ["w1 [MASK] w2", "w3p4 w5 w6"]
    seen: list[tuple[int, int]] = []
    made = make(
        some, 2, {"masked-lm": 1}, teacher=folder, progress=lambda done, total, unit: seen.append((done, total))
    )
    assert make(some, 2, {"masked-lm": 1}, teacher=folder).texts == made.texts
    assert not made.warnings and seen[-1] == (184, 184)
    assert not any(one.source == 90 for one in made.texts)  # a text that spells the mask is not guessed at
    changes = []
    for one in made.texts:
        before, after = some[one.source].split(), one.text.split()
        assert len(before) == len(after)
        changed = [(i, a, b) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert changed and all(b in WORDS[:40] and i < 22 for i, _, b in changed)  # 24 positions, two special tokens
        changes.append(len(changed) / len(before))
    assert 0.05 < sum(changes) / len(changes) < 0.35
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    job = augment.Masked(["w1", "w2", "w3"], [1], random.Random(0))
    with torch.no_grad():
        logits = model(**tokenizer("w1 [MASK] w3", return_tensors="pt")).logits[0, 2]
    likely = [WORDS[i] for i in (logits[5:45]).topk(11).indices.tolist() if WORDS[i] != "w2"]
    for seed in range(20):
        drawn = augment.refill(folder, [augment.Masked(job.words, job.places, random.Random(seed))])[0].split()
        assert drawn[::2] == ["w1", "w3"] and drawn[1] in likely
