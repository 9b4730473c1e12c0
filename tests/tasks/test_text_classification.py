"""Metrics against scikit-learn and a closed form; ids against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.errors import BadInput
from edgekd.tasks import text_classification as task


def examples(labels: np.ndarray) -> list[dict[str, int]]:
    return [{"text": "", "label": int(label)} for label in labels]


def test_accuracy_and_macro_f1_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(300, 7)), random.integers(0, 6, 300)  # class 6 never occurs
    logits[:200] += 2 * np.eye(7)[labels[:200]]
    found = task.metrics(logits, examples(labels))
    predicted = logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_ece_in_closed_form() -> None:
    # Two classes, confidence sigmoid(2) in every row, three of four right: ECE = |sigmoid(2) - 0.75|.
    logits = np.array([[2.0, 0.0]] * 4)
    found = task.metrics(logits, examples(np.array([0, 0, 0, 1])))
    assert found["ece"] == pytest.approx(1 / (1 + np.exp(-2)) - 0.75)
    # A model that is always sure and always right is calibrated.
    assert task.metrics(np.array([[99.0, 0.0]]), examples(np.array([0])))["ece"] == pytest.approx(0.0)


def test_teacher_agreement_compares_predictions() -> None:
    teacher = np.array([[1.0, 0.0], [0.0, 1.0]])
    student = np.array([[5.0, 0.0], [1.0, 0.0]])
    assert task.metrics(student, examples(np.array([0, 1])), teacher)["teacher_agreement"] == 0.5


def test_ids_are_those_of_transformers_and_carried_over_settings_are_dropped(tiny) -> None:  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny.folder / "teacher")
    ours = Tokenizer.from_file(str(tiny.folder / "teacher" / "tokenizer.json"))
    ours.enable_padding(length=99)  # some published tokenizer.json files carry these
    ours.enable_truncation(3)
    texts = ["please tell me about apple", "", "zinc " * 30, "café ☕ unknown wörds"]
    found = task.encode(ours, [{"text": text} for text in texts], 12)
    for text, row in zip(texts, found, strict=True):
        assert row["input_ids"] == theirs(text, truncation=True, max_length=12)["input_ids"]
        assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_labels_by_name_or_number_and_nothing_else() -> None:
    labels = ["a", "b"]
    assert task.example({"text": " x ", "label": "b"}, labels) == {"text": "x", "label": 1}
    assert task.example({"text": "x", "label": "0"}, labels) == {"text": "x", "label": 0}
    assert task.example({"text": "x"}, labels) == {"text": "x"}
    with pytest.raises(BadInput, match="unknown label '2'"):
        task.example({"text": "x", "label": "2"}, labels)


def test_the_loss_is_the_mean_over_labelled_rows_alone() -> None:
    import torch

    logits = torch.randn(3, 4, requires_grad=True)
    loss = task.hard_loss(logits, task.targets([{"text": "", "label": 2}, {"text": ""}, {"text": "", "label": 0}]))
    assert loss.item() == pytest.approx(-logits.log_softmax(-1)[[0, 2], [2, 0]].mean().item())
    nothing = task.hard_loss(logits, [None] * 3)
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


def test_names_that_contradict_the_teachers_are_refused() -> None:
    from transformers import BertConfig

    def config(names: list[str]) -> BertConfig:
        return BertConfig(id2label=dict(enumerate(names)), architectures=["BertForSequenceClassification"])

    assert task.labels(config(["a", "b"]), None) == task.labels(config(["a", "b"]), ["a", "b"]) == ["a", "b"]
    assert task.labels(config(["LABEL_0", "LABEL_1"]), ["x", "y"]) == ["x", "y"]
    for asked, message in ((["b", "a"], "another order"), (["a", "c"], "differ")):
        with pytest.raises(BadInput, match=message):
            task.labels(config(["a", "b"]), asked)
    with pytest.raises(BadInput, match="names 3, the teacher has 2"):
        task.labels(config(["LABEL_0", "LABEL_1"]), ["x", "y", "z"])


def test_answers_are_probabilities_best_first() -> None:
    found = task.answer(np.array([0.0, np.log(3.0)]), {}, ["no", "yes"], top_k=5)
    assert [one["label"] for one in found] == ["yes", "no"]
    assert found[0]["score"] == pytest.approx(0.75)
