"""Correlations against SciPy; vectors and loss against their definitions, written out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

from edgekd.errors import BadInput
from edgekd.tasks import sentence_similarity as task


def pairs(scores: list[float]) -> list[dict]:  # type: ignore[type-arg]
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": str(score)} for i, score in enumerate(scores)]
    return task.expand([task.example(row, []) for row in rows], None, 64)  # type: ignore[return-value]


def test_correlations_are_scipys() -> None:
    numbers = np.random.default_rng(0)
    scores = numbers.integers(0, 6, 80).astype(float)
    vectors, teacher = numbers.normal(size=(160, 3)), numbers.normal(size=(160, 5))
    found = task.metrics(vectors, pairs(scores.tolist()), teacher)

    def cosines(x: np.ndarray) -> np.ndarray:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (x[::2] * x[1::2]).sum(1)

    ours = cosines(vectors)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(ours, scores).statistic)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(ours, scores).statistic)
    assert found["teacher_agreement"] == pytest.approx(
        scipy.stats.spearmanr(ours, cosines(teacher)).statistic, abs=1e-6
    )


def test_ranks_are_scipys_ties_included() -> None:
    values = np.random.default_rng(1).integers(0, 9, 50)
    assert task.ranks(values).tolist() == scipy.stats.rankdata(values).tolist()


def test_a_model_that_always_says_the_same_has_no_correlation() -> None:
    assert task.metrics(np.ones((6, 2)), pairs([0, 1, 5]))["spearman"] == 0.0


def test_the_vector_is_the_mean_over_real_tokens_and_has_length_one() -> None:
    hidden = torch.randn(2, 4, 3)
    inputs = {"attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])}
    found = task.logits(SimpleNamespace(last_hidden_state=hidden), inputs)
    for row, size in ((0, 2), (1, 4)):
        mean = hidden[row, :size].mean(0)
        torch.testing.assert_close(found[row], mean / mean.norm())


def test_a_pair_is_two_rows_with_the_score_in_both() -> None:
    rows = pairs([5.0, 2.5])
    assert [row["text"] for row in rows] == ["a 0", "b 0", "a 1", "b 1"]
    assert task.targets(rows) == [1.0, 1.0, 0.5, 0.5]
    assert task.targets(pairs([1.0, 0.25])) == [1.0, 1.0, 0.25, 0.25]  # a table that goes to 1
    assert task.group_text(rows[0]) == task.group_text(rows[1]) != task.group_text(rows[2])


def test_unlabelled_texts_pair_in_order_and_none_is_left_over() -> None:
    rows = task.expand([task.example({"text": text}, []) for text in "abc"], None, 64)
    assert [row["text"] for row in rows] == ["a", "b"] and task.targets(rows) == [None, None]


def test_the_loss_is_the_squared_distance_of_cosine_and_score_over_labelled_pairs() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = task.hard_loss(vectors, [1.0, 1.0, 0.5, 0.5, None, None])
    assert loss.item() == pytest.approx(((0.6 - 1.0) ** 2 + 0.5**2) / 2)
    nothing = task.hard_loss(vectors, [None] * 6)
    nothing.backward()
    assert nothing.item() == 0 and not vectors.grad.any()


def test_agreement_is_by_direction_and_has_no_meaning_between_widths() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0]])
    others = np.array([[3.0, 0.1], [1.0, 1.0]])
    assert task.agree(vectors, others).tolist() == [1.0, 0.0]
    assert task.agree(vectors, np.ones((2, 3))) is None


@pytest.mark.parametrize("score", ["", "high", "-1", "5.1", "nan"])
def test_scores_off_the_scales_are_refused(score: str) -> None:
    with pytest.raises(BadInput, match="from 0 to 5"):
        task.example({"sentence1": "a", "sentence2": "b", "score": score}, [])
