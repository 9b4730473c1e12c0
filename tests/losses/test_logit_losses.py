"""Losses between outputs against torch.distributions, closed forms and identities of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from edgekd.losses.logits import cosine, decoupled_kd, forward_kl, jensen_shannon, mse, reverse_kl

KLS = [forward_kl, reverse_kl, jensen_shannon, decoupled_kd]
ALL = [*KLS, mse, cosine]


def pair(rows: int = 5, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 2 * torch.randn(rows, classes), 2 * torch.randn(rows, classes)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_directions_and_the_factor_of_the_temperature(temperature: float) -> None:
    student, teacher = pair()
    q, p = Categorical(logits=student / temperature), Categorical(logits=teacher / temperature)
    m = Categorical(probs=(p.probs + q.probs) / 2)
    forward, reverse = kl_divergence(p, q).mean(), kl_divergence(q, p).mean()
    middle = (kl_divergence(p, m).mean() + kl_divergence(q, m).mean()) / 2
    assert forward.item() != pytest.approx(reverse.item(), rel=1e-2)
    for loss, right in ((forward_kl, forward), (reverse_kl, reverse), (jensen_shannon, middle)):
        assert loss(student, teacher, temperature).item() == pytest.approx(right.item() * temperature**2, rel=1e-5)


@pytest.mark.parametrize(("loss", "factor"), [(forward_kl, 1.0), (reverse_kl, 1.0), (jensen_shannon, 0.25)])
def test_the_gradient_tends_to_the_gap_of_the_logits(loss, factor: float) -> None:
    # For large T the gradient of T^2 KL tends to (student - teacher) / (K M) on centred logits (Hinton et al., eq. 4);
    # Jensen-Shannon is a quarter of it to second order.
    student, teacher = pair()
    student.requires_grad_()
    loss(student, teacher, 1000.0).backward()
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(student.grad, factor * gap.detach() / gap.numel(), rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("loss", KLS)
def test_the_gradient_keeps_its_size_across_temperatures(loss) -> None:
    student, teacher = pair()
    norms = []
    for temperature in (20.0, 200.0):
        leaf = student.clone().requires_grad_()
        loss(leaf, teacher, temperature).backward()
        norms.append(leaf.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.2)  # without T^2 they would differ by a factor of 100


@pytest.mark.parametrize("loss", [mse, cosine])
def test_mse_and_cosine_ignore_the_temperature(loss) -> None:
    student, teacher = pair()
    assert loss(student, teacher, 8.0).item() == loss(student, teacher, 1.0).item()


def test_mse_and_cosine_are_torchs() -> None:
    student, teacher = pair()
    functional = torch.nn.functional
    assert mse(student, teacher).item() == pytest.approx(functional.mse_loss(student, teacher).item(), rel=1e-6)
    right = functional.cosine_embedding_loss(student, teacher, torch.ones(5)).item()
    assert cosine(student, teacher).item() == pytest.approx(right, rel=1e-5)


def test_jensen_shannon_is_bounded_and_finite_where_both_underflow() -> None:
    teacher = torch.tensor([[0.0, -500.0, -1e4, -torch.inf], [0.0, -2e4, -2e4, -2e4]])
    student = torch.tensor([[-500.0, 0.0, -1e4, -torch.inf], [0.0, -3e4, -3e4, -3e4]]).requires_grad_()
    loss = jensen_shannon(student, teacher, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) / 2, rel=1e-6)  # disjoint in one row of two
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", ALL)
def test_classes_that_a_row_does_not_have_count_nowhere(loss) -> None:
    student, teacher = pair()
    missing = torch.full((5, 3), -1e4)
    short, long = student.clone().requires_grad_(), torch.cat([student, missing], 1).requires_grad_()
    one, other = loss(short, teacher, 4.0), loss(long, torch.cat([teacher, missing], 1), 4.0)
    torch.testing.assert_close(other, one)
    one.backward()
    other.backward()
    torch.testing.assert_close(long.grad, torch.cat([short.grad, torch.zeros(5, 3)], 1))


def test_plain_kl_is_the_decoupled_one_with_the_papers_weights() -> None:
    # KL(p || q) = KL of target against rest + (1 - p_target) * KL among the rest.
    student, teacher = pair(rows=1)
    for temperature in (1.0, 4.0):
        sure = (teacher / temperature).softmax(-1).max().item()
        found = decoupled_kd(student, teacher, temperature, alpha=1.0, beta=1.0 - sure)
        assert found.item() == pytest.approx(forward_kl(student, teacher, temperature).item(), rel=1e-5)


def test_decoupled_parts_by_their_definitions() -> None:
    student, teacher = pair()
    q, p = (student / 2).softmax(-1).double(), (teacher / 2).softmax(-1).double()
    binary = rest = 0.0
    for row in range(5):
        t = int(p[row].argmax())
        others = [k for k in range(7) if k != t]
        for a, b in ((p[row, t], q[row, t]), (1 - p[row, t], 1 - q[row, t])):
            binary += float(a * (a / b).log()) / 5
        for k in others:
            a, b = p[row, k] / (1 - p[row, t]), q[row, k] / (1 - q[row, t])
            rest += float(a * (a / b).log()) / 5
    assert decoupled_kd(student, teacher, 2.0, alpha=1.0, beta=0.0).item() == pytest.approx(4 * binary, rel=1e-4)
    assert decoupled_kd(student, teacher, 2.0, alpha=0.0, beta=1.0).item() == pytest.approx(4 * rest, rel=1e-4)
    assert decoupled_kd(student, teacher, 2.0).item() == pytest.approx(4 * (binary + 8 * rest), rel=1e-4)


def test_decoupled_kd_teaches_the_rest_also_where_the_teacher_is_sure() -> None:
    teacher = torch.tensor([[30.0, 2.0, 0.0]])
    student = torch.tensor([[30.0, 0.0, 2.0]])
    assert forward_kl(student, teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert decoupled_kd(student, teacher).item() > 1.0


@pytest.mark.parametrize("loss", [forward_kl, jensen_shannon, decoupled_kd])
def test_one_class_teaches_nothing(loss) -> None:
    student = torch.randn(3, 1, requires_grad=True)
    found = loss(student, torch.randn(3, 1), 2.0)
    found.backward()
    assert found.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(student.grad, torch.zeros(3, 1))
