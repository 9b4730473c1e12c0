"""Losses between hidden states and attention maps against torch's own functions on the real tokens, and loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from edgekd.losses.features import attention_kl, attention_mse, hidden_cosine, hidden_mse, project

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def maps(heads: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return (2 * torch.randn(2, heads, 4, 4)).masked_fill(MASK[:, None, None] == 0, -1e9).softmax(-1)


def test_hidden_losses_are_torchs_on_the_real_tokens() -> None:
    torch.manual_seed(0)
    mine, theirs, real = torch.randn(2, 4, 6), torch.randn(2, 4, 6), MASK.bool()
    right = F.mse_loss(mine[real], theirs[real]).item()
    assert hidden_mse(mine, theirs, MASK).item() == pytest.approx(right, rel=1e-6)
    right = F.cosine_embedding_loss(mine[real], theirs[real], torch.ones(7)).item()
    assert hidden_cosine(mine, theirs, MASK).item() == pytest.approx(right, rel=1e-5)


def test_a_direction_has_no_length() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    assert hidden_cosine(3 * theirs, theirs, MASK).item() == pytest.approx(0.0, abs=1e-6)
    assert hidden_cosine(-theirs, theirs, MASK).item() == pytest.approx(2.0, rel=1e-6)
    assert hidden_mse(3 * theirs, theirs, MASK).item() > hidden_mse(theirs + 0.1 * mine, theirs, MASK).item()


def test_attention_mse_by_loops() -> None:
    mine, theirs = maps(3, 0), maps(3, 1)
    squares = [
        (mine[b, h, i, j] - theirs[b, h, i, j]).item() ** 2
        for b, length in enumerate((3, 4))
        for h in range(3)
        for i in range(length)
        for j in range(length)
    ]
    assert attention_mse(mine, theirs, MASK).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_attention_kl_is_teacher_to_student_over_real_queries() -> None:
    mine, theirs = maps(3, 0), maps(3, 1)
    rows = [(b, h, i) for b, length in enumerate((3, 4)) for h in range(3) for i in range(length)]
    right = [kl_divergence(Categorical(probs=theirs[row]), Categorical(probs=mine[row])).item() for row in rows]
    assert attention_kl(mine, theirs, MASK).item() == pytest.approx(sum(right) / len(right), rel=1e-4)


@pytest.mark.parametrize("loss", [attention_mse, attention_kl])
def test_differing_head_counts_compare_the_mean_map(loss) -> None:
    mine, theirs = maps(2, 0), maps(6, 1)
    right = loss(mine.mean(1, keepdim=True), theirs.mean(1, keepdim=True), MASK)
    torch.testing.assert_close(loss(mine, theirs, MASK), right)


def test_attention_kl_forgives_the_rounding_of_the_cache_and_a_probability_of_zero() -> None:
    theirs = maps(3, 1)
    assert attention_kl(theirs, theirs.half(), MASK).item() == pytest.approx(0.0, abs=1e-5)
    mine = torch.eye(4).expand(2, 3, 4, 4).clone().requires_grad_()  # zero where the teacher is not
    loss = attention_kl(mine, theirs, MASK)
    loss.backward()
    assert 0 < loss.item() < math.log(1e8) + 1
    assert torch.isfinite(mine.grad).all()


@pytest.mark.parametrize(("student", "teacher"), [(4, 6), (6, 4), (5, 5)])
def test_a_projection_starts_orthogonal(student: int, teacher: int) -> None:
    layer = project(student, teacher)
    narrow = min(student, teacher)
    weight = layer.weight.detach()
    gram = weight @ weight.T if teacher <= student else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(narrow), atol=1e-5, rtol=0)
    assert layer(torch.randn(2, 3, student)).shape == (2, 3, teacher)
    assert torch.equal(layer(torch.zeros(student)), torch.zeros(teacher))
