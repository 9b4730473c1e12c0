"""Losses against torch.distributions, closed forms and the traps of the field."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from edgekd.losses.features import hidden_mse
from edgekd.losses.logits import forward_kl


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_forward_kl_is_teacher_to_student_times_t_squared(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    right = kl_divergence(Categorical(logits=teacher / temperature), Categorical(logits=student / temperature))
    wrong = kl_divergence(Categorical(logits=student / temperature), Categorical(logits=teacher / temperature))
    found = forward_kl(student, teacher, temperature)
    assert found.item() == pytest.approx(right.mean().item() * temperature**2, rel=1e-5)
    assert found.item() != pytest.approx(wrong.mean().item() * temperature**2, rel=1e-2)


def test_gradient_keeps_its_size_across_temperatures() -> None:
    # For large T the gradient of T^2 KL tends to (student - teacher) / (C B) on centred logits (Hinton et al., eq. 4).
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    forward_kl(student, teacher, 100.0).backward()
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(student.grad, gap.detach() / (6 * 4), rtol=0.1, atol=2e-3)


def test_student_equal_to_teacher_loses_nothing_and_the_teacher_gets_no_gradient() -> None:
    logits = torch.randn(3, 9, requires_grad=True)
    teacher = logits.detach().clone().requires_grad_()
    loss = forward_kl(logits, teacher, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert teacher.grad is None


def test_half_precision_inputs_are_computed_in_float() -> None:
    student, teacher = torch.randn(4, 50) * 10, torch.randn(4, 50) * 10
    exact = forward_kl(student.bfloat16().float(), teacher.bfloat16().float(), 1.0)
    assert forward_kl(student.bfloat16(), teacher.bfloat16(), 1.0).item() == pytest.approx(exact.item(), rel=1e-6)


def test_padding_changes_neither_hidden_loss_nor_gradient() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    loss = hidden_mse(mine, theirs, mask)
    loss.backward()
    padded = torch.cat([mine.detach(), torch.full((2, 2, 4), 1e3)], 1).requires_grad_()
    other = hidden_mse(padded, torch.cat([theirs, torch.zeros(2, 2, 4)], 1), torch.nn.functional.pad(mask, (0, 2)))
    other.backward()
    assert other.item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(padded.grad[:, :3], mine.grad)
    keep = mask.bool()
    assert loss.item() == pytest.approx(((mine - theirs)[keep] ** 2).mean().item(), rel=1e-6)
