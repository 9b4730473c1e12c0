"""The chunked loss of a language model is the plain one, and so are its gradients; judged by torch's autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.losses import _tokens as tokens
from edgekd.losses._tokens import SKEW, Dense, Head, Settings, Sparse

N, D, E, V = 13, 8, 6, 50


def made(seed: int = 0, *, vocabulary: int = V, bias: bool = False, **head: float) -> tuple[torch.Tensor, Head, Dense]:
    """Hidden states and head of a student, and a teacher."""
    torch.manual_seed(seed)
    hidden = torch.randn(N, D).mul(2).requires_grad_()
    weight = torch.randn(vocabulary, D).requires_grad_()
    student = Head(weight, torch.randn(vocabulary).requires_grad_() if bias else None, **head)
    return hidden, student, Dense(torch.randn(N, E), Head(torch.randn(V, E), **head))


def plain(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    """Logits as one writes them, in float64."""
    found = hidden.double() @ head.weight.double().T
    found = (found if head.bias is None else found + head.bias.double()) * head.scale
    return head.cap * torch.tanh(found / head.cap) if head.cap else found


def kl(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.exp() * (left - right)).sum(-1)


def divergence(name: str, log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """From the papers' definitions."""
    p, q = log_p.exp(), log_q.exp()
    half = ((p + q) / 2).log()
    return {
        "forward-kl": lambda: kl(log_p, log_q),
        "reverse-kl": lambda: kl(log_q, log_p),
        "jensen-shannon": lambda: (kl(log_p, half) + kl(log_q, half)) / 2,
        "skew-kl": lambda: kl(log_p, (SKEW * p + (1 - SKEW) * q).log()),
        "skew-reverse-kl": lambda: kl(log_q, (SKEW * q + (1 - SKEW) * p).log()),
    }[name]()


def gradients(value: torch.Tensor, hidden: torch.Tensor, head: Head) -> list[torch.Tensor]:
    wanted = [one for one in (hidden, head.weight, head.bias) if one is not None]
    return list(torch.autograd.grad(value, wanted))


def same(value: torch.Tensor, expected: torch.Tensor, hidden: torch.Tensor, head: Head) -> None:
    assert value.item() == pytest.approx(expected.item(), rel=2e-5, abs=1e-6)
    for mine, theirs in zip(gradients(value, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("name", tokens.DIVERGENCES)
@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({}, {}),
        ({"temperature": 2.5, "soft": 0.7, "hard": 0.3}, {"bias": True}),
        ({"soft": 1.0, "hard": 0.5}, {"cap": 5.0, "scale": 0.3}),
        ({"temperature": 0.5, "chunk": 10**9}, {"scale": 0.5}),
    ],
)
def test_the_loss_and_its_gradients_are_autograds(name: str, options: dict[str, Any], head: dict[str, Any]) -> None:
    hidden, student, teacher = made(**head)
    labels = torch.arange(N) * 3 % V
    labels[4] = -100
    how = Settings(**{"divergence": name, "chunk": 4 * V, **options})
    value, parts = tokens.loss(hidden, student, teacher, labels, how)
    logits, t = plain(student, hidden), how.temperature
    soft = (
        t**2
        * divergence(
            name, (logits / t).log_softmax(-1), (plain(teacher.head, teacher.hidden) / t).log_softmax(-1)
        ).mean()
    )
    hard = F.cross_entropy(logits, labels)
    same(value, how.soft * soft + how.hard * hard, hidden, student)
    assert parts["soft"] == pytest.approx(soft.item(), rel=1e-4) and parts["dropped"] == 0
    assert parts["hard"] == pytest.approx(hard.item() if how.hard else 0.0, rel=1e-4)


@pytest.mark.parametrize("name", tokens.DIVERGENCES)
def test_what_is_equal_costs_nothing_and_what_underflows_is_finite(name: str) -> None:
    hidden, student, _ = made()
    value, _ = tokens.loss(hidden, student, Dense(hidden.detach(), student), None, Settings(name, chunk=3 * V))
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert all(one.abs().max() < 1e-5 for one in gradients(value, hidden, student))
    far = Dense(-200 * hidden.detach(), student)
    value, _ = tokens.loss(200 * hidden, student, far, None, Settings(name))
    assert math.isfinite(value.item()) and value.item() > 0
    assert all(one.isfinite().all() for one in gradients(value, hidden, student))


def sparse(log_p: torch.Tensor, k: int, tail: bool = True) -> Sparse:
    top = log_p.topk(k)
    return Sparse(top.indices.int(), top.values, tail)


def bucket(log_q: torch.Tensor, known: Sparse) -> torch.Tensor:
    """KL of two distributions of K + 1 values."""
    ids = known.ids.long()
    q = torch.cat([log_q.gather(1, ids).exp(), (1 - log_q.gather(1, ids).exp().sum(-1, keepdim=True))], 1)
    p = known.log_probs.double().exp()
    p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], 1)
    return (torch.xlogy(p, p) - p * q.log()).sum(-1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, V - 1), st.sampled_from([1.0, 2.0]), st.sampled_from([0.0, 0.4]))
def test_cached_tokens_and_a_bucket_for_the_rest(seed: int, k: int, temperature: float, hard: float) -> None:
    hidden, student, teacher = made(seed)
    known = sparse((plain(teacher.head, teacher.hidden) / temperature).log_softmax(-1), k)
    labels = torch.arange(N)
    how = Settings(temperature=temperature, hard=hard, chunk=5 * V)
    value, _ = tokens.loss(hidden, student, known, labels, how)
    logits = plain(student, hidden)
    soft = temperature**2 * bucket((logits / temperature).log_softmax(-1), known).mean()
    same(value, soft + hard * F.cross_entropy(logits, labels), hidden, student)


def test_all_tokens_from_the_cache_are_the_dense_loss() -> None:
    hidden, student, teacher = made()
    known = sparse(plain(teacher.head, teacher.hidden).log_softmax(-1), V, tail=False)
    value, _ = tokens.loss(hidden, student, known, None, Settings())
    dense, _ = tokens.loss(hidden, student, teacher, None, Settings())
    assert value.item() == pytest.approx(dense.item(), rel=1e-5)
    for mine, theirs in zip(gradients(value, hidden, student), gradients(dense, hidden, student), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_sampled_tokens_have_no_rest_and_a_row_may_be_filled_up() -> None:
    """Counts of three samples: two tokens in one row, three in another; the third place of the first is a filler."""
    hidden, student, _ = made()
    ids = torch.tensor([[4, 9, 0], [1, 2, 3]] * N)[:N]
    p = torch.tensor([[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3]] * N)[:N]
    value, _ = tokens.loss(hidden, student, Sparse(ids, p.log(), tail=False), None, Settings(chunk=V))
    log_q = plain(student, hidden).log_softmax(-1)
    expected = (torch.xlogy(p, p) - p * log_q.gather(1, ids)).sum(-1).mean()
    same(value, expected, hidden, student)
    twice = Sparse(torch.where(ids == 0, 9, ids), p.log(), tail=False)  # a filler that stands for a known token
    assert tokens.loss(hidden, student, twice, None, Settings(chunk=V))[0].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_a_student_that_is_sure_gets_an_exact_tail() -> None:
    """1 - sum(q) would be noise here: all but 1e-12 of the student lies on the token that the teacher knows."""
    weight = torch.zeros(V, 1)
    weight[0] = 30.0
    hidden = torch.ones(1, 1, requires_grad=True)
    known = Sparse(torch.tensor([[0]]), torch.tensor([[0.5]]).log())
    value, _ = tokens.loss(hidden, Head(weight), known, None, Settings())
    z = plain(Head(weight), hidden)[0]
    log_rest = z[1:].logsumexp(-1) - z.logsumexp(-1)
    assert value.item() == pytest.approx((math.log(0.5) - 0.5 * log_rest.item()), rel=1e-5)


def test_padding_rows_of_either_head_are_left_out_and_told() -> None:
    """The student is the teacher on all real tokens; 28 untrained rows must not make it look worse."""
    torch.manual_seed(0)
    hidden, real = torch.randn(N, D), torch.randn(V, D)
    teacher = Dense(hidden, Head(torch.cat([real, torch.randn(28, D)])))
    student = Head(torch.cat([real, 5 * torch.randn(3, D)]).requires_grad_())
    value, parts = tokens.loss(hidden, student, teacher, None, Settings(vocabulary=V, chunk=4 * V))
    assert value.item() == pytest.approx(0, abs=1e-6)
    probability = plain(teacher.head, hidden).softmax(-1)[:, V:].sum(-1).mean()
    assert parts["dropped"] == pytest.approx(probability.item(), rel=1e-4) and parts["dropped"] > 0.01
    value.backward()
    assert student.weight.grad is not None and student.weight.grad[V:].abs().max() == 0


def test_bfloat16_is_rounded_at_its_ends_only() -> None:
    hidden, student, teacher = made()
    half = hidden.detach().bfloat16().requires_grad_()
    head = Head(student.weight.detach().bfloat16().requires_grad_())
    value, _ = tokens.loss(half, head, teacher, None, Settings(chunk=2 * V))
    exact, _ = tokens.loss(half.detach().float(), Head(head.weight.detach().float()), teacher, None, Settings())
    assert value.item() == exact.item()
    value.backward()
    assert half.grad is not None and half.grad.dtype == head.weight.grad.dtype == torch.bfloat16  # type: ignore[union-attr]


def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden, student, teacher = made()
    frozen = Head(student.weight.detach())
    value, _ = tokens.loss(hidden, frozen, teacher, None, Settings())
    value.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert tokens.loss(hidden, student, teacher, None, Settings())[0].item() == value.item()
    labels = torch.arange(N)
    value, _ = tokens.loss(hidden, student, None, labels, Settings(soft=0, hard=1))
    same(value, F.cross_entropy(plain(student, hidden), labels), hidden, student)


@pytest.mark.parametrize(
    ("change", "how", "told"),
    [
        ({"hidden": torch.zeros(0, D)}, Settings(), "no tokens"),
        ({}, Settings("kl"), "unknown divergence 'kl'"),
        ({}, Settings(vocabulary=V + 1), "fewer rows"),
        ({"teacher": Sparse(torch.zeros(N, 1).int(), torch.zeros(N, 1))}, Settings("reverse-kl"), "whole distribution"),
    ],
)
def test_what_cannot_be_is_told(change: dict[str, Any], how: Settings, told: str) -> None:
    hidden, student, teacher = made()
    with pytest.raises(ValueError, match=told):
        tokens.loss(change.get("hidden", hidden), student, change.get("teacher", teacher), None, how)
