"""Spans and F1 against seqeval; words against the offsets a reader would count; the real teacher's published F1."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekd.errors import BadInput
from edgekd.tasks import token_classification as task

LABELS = ["O", "B-date", "I-date", "B-people", "I-people"]


@pytest.fixture
def pieces() -> Tokenizer:
    """A lower-casing WordPiece tokenizer that cuts every word but "at" into letters."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,?'"]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "at", *letters, *(f"##{c}" for c in letters)]
    made = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def row_of(tags: list[str]) -> dict:  # type: ignore[type-arg]
    return dict(task.example({"tokens": ["w"] * len(tags), "tags": tags}, LABELS))


def outputs_of(tags: list[str]) -> np.ndarray:
    return np.eye(len(LABELS))[[LABELS.index(tag) for tag in tags]] if tags else np.zeros((0, len(LABELS)))


def test_span_scores_are_seqevals_on_any_sequence_of_tags() -> None:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    chance = random.Random(0)
    gold = [chance.choices(LABELS, k=chance.randint(1, 12)) for _ in range(300)]
    found = [[tag if chance.random() < 0.7 else chance.choice(LABELS) for tag in row] for row in gold]
    ours = task.metrics([outputs_of(row) for row in found], [row_of(row) for row in gold])
    assert ours["span_f1"] == pytest.approx(f1_score(gold, found))
    assert ours["span_precision"] == pytest.approx(precision_score(gold, found))
    assert ours["span_recall"] == pytest.approx(recall_score(gold, found))
    assert ours["token_accuracy"] == pytest.approx(accuracy_score(gold, found))


def test_an_inside_without_a_beginning_begins_a_span() -> None:
    assert task.spans(["I-date", "I-date", "O", "B-date", "B-date", "I-people"]) == [
        ("date", 0, 1),
        ("date", 3, 3),
        ("date", 4, 4),
        ("people", 5, 5),
    ]


def test_a_words_logits_are_those_of_its_first_piece(pieces) -> None:  # type: ignore[no-untyped-def]
    example = task.example({"text": "Book at 7pm, please", "spans": [{"start": 8, "end": 11, "label": "date"}]}, LABELS)
    assert [example["text"][start:end] for start, end in example["words"]] == ["Book", "at", "7pm", ",", "please"]
    assert example["tags"] == [0, 0, 1, 0, 0]
    (encoded,) = task.encode(pieces, [example], 64)
    assert [pieces.id_to_token(encoded["input_ids"][unit]) for unit in encoded["units"]] == ["b", "at", "7", ",", "p"]
    logits_SC = torch.arange(len(encoded["input_ids"]) * 5.0).view(-1, 5)
    expected = logits_SC[[1, 5, 6, 9, 10]]
    assert torch.equal(task.take(logits_SC, encoded), expected)
    assert np.array_equal(task.take(logits_SC.numpy(), encoded), expected.numpy())


def test_words_that_a_cut_text_has_lost_are_outside_and_cost_score(pieces) -> None:  # type: ignore[no-untyped-def]
    example = task.example({"tokens": ["two", "at", "noon"], "tags": ["B-people", "O", "B-date"]}, LABELS)
    (encoded,) = task.encode(pieces, [example], 6)  # [CLS] t ##w ##o at [SEP]
    assert encoded["units"] == [1, 4, -1]
    logits_SC = np.zeros((6, 5)) - 1.0
    logits_SC[1, 3] = logits_SC[4, 0] = 5.0
    output = task.take(logits_SC, encoded)
    assert output.shape == (3, 5)
    found = task.metrics([output], [example])
    assert found["span_recall"] == 0.5 and found["span_precision"] == 1.0 and found["token_accuracy"] == 2 / 3
    # The lost word has a target, but nothing to learn from.
    loss = task.hard_loss(torch.tensor(output), task.targets([example]))
    assert loss.item() == pytest.approx(np.log(1 + 4 * np.exp(-6)), rel=1e-4)


def test_untagged_rows_do_not_count_in_the_loss() -> None:
    tagged, untagged = row_of(["B-date", "O"]), task.example({"text": "no tags here"}, [])
    stacked = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    loss = task.hard_loss(stacked, task.targets([tagged, untagged]))
    assert loss.item() == pytest.approx(-stacked.log_softmax(-1)[[0, 1], [1, 0]].mean().item())
    none = task.hard_loss(stacked, task.targets([untagged, task.example({"text": "at all"}, [])]))
    none.backward()
    assert none.item() == 0 and not stacked.grad.any()


def test_tokens_are_found_in_their_text_and_joined_without_one() -> None:
    spaced = {"tokens": ["7", "pm", "."], "tags": ["O"] * 3}
    assert task.example({**spaced, "text": " 7pm ."}, LABELS)["words"] == [[1, 2], [2, 4], [5, 6]]
    assert task.example(spaced, LABELS)["text"] == "7 pm ."


def test_rows_with_other_words_have_other_names_in_the_cache() -> None:
    one = task.example({"text": "New York", "tokens": ["New", "York"], "tags": ["O", "O"]}, LABELS)
    other = task.example({"text": "New York", "tokens": ["New York"], "tags": ["O"]}, LABELS)
    assert task.sample_text(one) == "New York" != task.sample_text(other)
    assert task.sample_text(one) == task.sample_text(task.example({"text": "New York"}, []))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["a"], "tags": ["B-dates"]}, "unknown label 'B-dates'.*'B-date'"),
        ({"tokens": ["b"], "tags": ["O"], "text": "a"}, "'b' does not occur"),
        ({"tokens": [], "text": ""}, "neither text nor tokens"),
        ({"text": "a"}, "no tags and no spans"),
        ({"text": "a b", "spans": [{"start": 0, "end": 1}]}, "start, end and label"),
        ({"text": "a b", "spans": [{"start": 9, "end": 12, "label": "date"}]}, "covers no word"),
        ({"text": "a b", "spans": [{"start": 0, "end": 3, "label": "date"}, {"start": 2, "end": 3, "label": "people"}]},
         "overlaps another"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_together_is_refused(row: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(BadInput, match=message):
        task.example(row, LABELS)


def test_a_tagger_must_have_bio_tags() -> None:
    from transformers import BertConfig

    def config(names: list[str], kind: str = "BertForTokenClassification") -> BertConfig:
        return BertConfig(id2label=dict(enumerate(names)), architectures=[kind])

    assert task.labels(config(LABELS), None) == LABELS
    assert task.labels(config(["LABEL_0", "LABEL_1"]), ["O", "B"]) == ["O", "B"]
    with pytest.raises(BadInput, match="'NOUN' is no BIO tag"):
        task.labels(config(["O", "NOUN"]), None)
    with pytest.raises(BadInput, match="labels have no names"):
        task.labels(config(["LABEL_0", "LABEL_1"]), None)
    with pytest.raises(BadInput, match="not a token classifier"):
        task.labels(config(LABELS, "BertForSequenceClassification"), None)


def test_an_answer_is_spans_of_the_text() -> None:
    example = task.example({"text": "ten at 7 pm", "tokens": ["ten", "at", "7", "pm"], "tags": ["O"] * 4}, LABELS)
    output = 20 * outputs_of(["B-people", "O", "B-date", "I-date"])
    found = task.answer(output, example, LABELS)
    assert [(one["label"], one["text"]) for one in found] == [("people", "ten"), ("date", "7 pm")]
    assert all(example["text"][one["start"] : one["end"]] == one["text"] for one in found)
    assert all(0.99 < one["score"] <= 1 for one in found)


@pytest.mark.slow
def test_the_real_teachers_span_f1_is_reproduced() -> None:
    from types import SimpleNamespace

    from _material import SHARED
    from transformers import AutoConfig

    from edgekd.data.load import read_table
    from edgekd.teach.transformers import arrays, load_teacher, predict

    folder, table = (
        SHARED / "teachers" / "restaurant8k-minilm-l6-tokcls",
        SHARED / "data" / "restaurant8k" / "test.jsonl",
    )
    if not (folder / "model.safetensors").is_file() or not table.is_file():
        pytest.skip(f"no restaurant8k teacher and data under {SHARED} (set EDGEKD_SHARED)")
    labels = task.labels(AutoConfig.from_pretrained(folder), None)
    rows = read_table(str(table), task.COLUMNS, {}, optional=task.OPTIONAL_COLUMNS, lists=task.LIST_COLUMNS)
    examples = [task.example(row, labels) for row in rows]
    model = load_teacher(SimpleNamespace(model=folder, revision=None), task.AUTO_TASK)
    encoded = task.encode(task.processor(folder), examples, 64)
    found = task.metrics(arrays(predict(model, task, encoded, 0)), examples)
    assert found["span_f1"] == pytest.approx(0.9406, abs=0.002)
