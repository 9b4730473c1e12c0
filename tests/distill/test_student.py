"""Students: what is copied from the teacher, and what shapes are refused (tests/test_bad_input.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from edgekd.distill import student
from edgekd.recipe import Student

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
KINDS = [
    (BertForSequenceClassification, BertConfig(**SIZES), "bert.encoder.layer"),
    (RobertaForSequenceClassification, RobertaConfig(**SIZES), "roberta.encoder.layer"),
    (
        DistilBertForSequenceClassification,
        DistilBertConfig(vocab_size=60, dim=16, n_layers=4, n_heads=2, hidden_dim=32),
        "distilbert.transformer.layer",
    ),
]


@pytest.mark.parametrize(("kind", "config", "path"), KINDS, ids=[k.__name__ for k, _, _ in KINDS])
def test_layers_embeddings_and_head_come_from_the_teacher(kind, config, path) -> None:  # type: ignore[no-untyped-def]
    teacher = kind(config).eval()
    made = student.make(Student(layers=2), teacher, AutoModelForSequenceClassification, seed=0)
    mine, theirs = made.state_dict(), teacher.state_dict()
    copied = {name for name in mine if path not in name}
    assert all(torch.equal(mine[name], theirs[name]) for name in copied)
    for name in mine:
        if name.startswith(f"{path}.1."):
            assert torch.equal(mine[name], theirs[name.replace(f"{path}.1.", f"{path}.3.")]), name
    assert mine[next(iter(mine))].data_ptr() != theirs[next(iter(mine))].data_ptr()


def test_a_full_size_student_is_the_teacher() -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    made = student.make(Student(layers=4), teacher, AutoModelForSequenceClassification, seed=0).eval()
    ids = torch.randint(0, 60, (3, 7))
    torch.testing.assert_close(made(input_ids=ids).logits, teacher(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("of", "count", "how", "expected"),
    [
        (6, 3, "uniform", [0, 2, 5]),
        (6, 2, "uniform", [0, 5]),
        (6, 1, "uniform", [5]),
        (6, 2, "first", [0, 1]),
        (6, 2, "last", [4, 5]),
    ],
)
def test_which_layers_are_taken(of: int, count: int, how: str, expected: list[int]) -> None:
    assert student.taken(of, count, how) == expected


def test_a_narrower_embedding_is_the_principal_components() -> None:
    from sklearn.decomposition import PCA

    table = np.random.default_rng(0).normal(size=(200, 12)) @ np.diag(np.linspace(3, 0.1, 12))
    found = student.reduce_embedding(torch.tensor(table).float(), 4).numpy()
    expected = PCA(n_components=4).fit_transform(table)
    for mine, theirs in zip(found.T, expected.T, strict=True):
        assert abs(np.corrcoef(mine, theirs)[0, 1]) == pytest.approx(1.0, abs=1e-4)
    assert found.std() == pytest.approx(student.EMBEDDING_STD, rel=1e-2)


def test_the_seed_decides_what_is_fresh() -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES))
    shape = Student(layers=2, hidden_size=8)
    one, two, other = (
        student.make(shape, teacher, AutoModelForSequenceClassification, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
