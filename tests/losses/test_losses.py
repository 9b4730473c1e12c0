"""What holds for every loss: found by name, 0 at the teacher, masks and micro-batches, precision, the quiet teacher."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from edgekd import registry
from edgekd.errors import BadInput
from edgekd.losses import find, known, layer_map

OUTPUTS = ["forward-kl", "reverse-kl", "jensen-shannon", "mse", "cosine", "decoupled-kd"]
TOKENS = ["hidden-mse", "hidden-cosine", "attention-mse", "attention-kl", "minilm"]
SAMPLES = ["rkd-distance", "rkd-angle", "similarity", "contrastive", "affinity"]
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])  # [B, S] = [4, 5]


def example(name: str, seed: int) -> torch.Tensor:
    """What a student or a teacher could have made for MASK's batch."""
    torch.manual_seed(seed)
    kind = find(name).compares
    if kind in ("outputs", "samples"):
        return 3 * torch.randn(4, 12)
    if kind == "attention":
        scores = 2 * torch.randn(4, 3, 5, 5)
        return scores.masked_fill(MASK[:, None, None] == 0, -1e9).softmax(-1)
    return 2 * torch.randn(4, 5, 12)


def value(name: str, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor = MASK) -> torch.Tensor:
    kind, function = find(name).compares, find(name).function
    rest = {"outputs": [2.0], "hidden": [mask], "attention": [mask], "relations": [mask, 4], "samples": []}[kind]
    return function(student, teacher, *rest)


def gradient(name: str, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor = MASK) -> torch.Tensor:
    leaf = student.clone().requires_grad_()
    value(name, leaf, teacher, mask).backward()
    return leaf.grad


def test_every_promised_loss_is_known() -> None:
    assert set(known()) == {*OUTPUTS, *TOKENS, *SAMPLES}


@pytest.mark.parametrize("name", [*OUTPUTS, *TOKENS, *SAMPLES])
def test_a_student_that_equals_its_teacher_loses_nothing_and_learns_nothing(name: str) -> None:
    teacher, other = example(name, 0), example(name, 1)
    assert value(name, teacher.clone(), teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert value(name, other, teacher).item() > 1e-3
    assert gradient(name, teacher, teacher).norm() < 1e-4 * gradient(name, other, teacher).norm()


@pytest.mark.parametrize("name", [*OUTPUTS, *TOKENS, *SAMPLES])
def test_the_teacher_gets_no_gradient(name: str) -> None:
    student, teacher = example(name, 1).requires_grad_(), example(name, 0).requires_grad_()
    value(name, student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.norm() > 0


@pytest.mark.parametrize("name", [*OUTPUTS, *TOKENS, *SAMPLES])
def test_half_precision_and_autocast_change_the_gradient_by_less_than_one_per_cent(name: str) -> None:
    student, teacher = example(name, 1).bfloat16(), example(name, 0).bfloat16()
    exact = gradient(name, student.float(), teacher.float())
    assert (gradient(name, student, teacher).float() - exact).norm() < 0.01 * exact.norm()
    leaf = student.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = value(name, leaf, teacher.float())
    loss.backward()
    torch.testing.assert_close(leaf.grad, exact)


@pytest.mark.parametrize("name", TOKENS)
def test_padding_changes_neither_loss_nor_gradient(name: str) -> None:
    def padded(x: torch.Tensor, filler: float) -> torch.Tensor:
        short = find(name).compares == "attention"
        return torch.nn.functional.pad(x, (0, 3, 0, 3) if short else (0, 0, 0, 3), value=filler)

    student, teacher = example(name, 1), example(name, 0)
    mask = torch.nn.functional.pad(MASK, (0, 3))
    long = padded(student, 7.0), padded(teacher, -5.0), mask
    if find(name).compares == "attention":
        long = padded(student, 0.3), padded(teacher, 0.6), mask
    torch.testing.assert_close(value(name, *long), value(name, student, teacher))
    wide, narrow = gradient(name, *long), gradient(name, student, teacher)
    inside = tuple(slice(size) for size in narrow.shape)
    torch.testing.assert_close(wide[inside], narrow)
    assert wide.norm().item() == pytest.approx(narrow.norm().item(), rel=1e-5)


@pytest.mark.parametrize("name", TOKENS)
def test_a_batch_without_a_real_token_is_zero_and_harmless(name: str) -> None:
    student, nothing = example(name, 1), torch.zeros_like(MASK)
    assert value(name, student, example(name, 0), nothing).item() == 0.0
    assert torch.equal(gradient(name, student, example(name, 0), nothing), torch.zeros_like(student))


@pytest.mark.parametrize("name", [*OUTPUTS, *TOKENS])
def test_micro_batches_add_up_to_the_batch(name: str) -> None:
    student, teacher = example(name, 1), example(name, 0)
    weights = torch.ones(4)
    if name in TOKENS:
        weights = MASK.sum(1).float() ** (2 if name == "attention-mse" else 1)  # tokens, or pairs of them
    parts = [slice(0, 1), slice(1, 4)]
    shares = [weights[part].sum() / weights.sum() for part in parts]
    values = [value(name, student[part], teacher[part], MASK[part]) for part in parts]
    whole = sum(share * one for share, one in zip(shares, values, strict=True))
    torch.testing.assert_close(whole, value(name, student, teacher))
    gradients = [gradient(name, student[part], teacher[part], MASK[part]) for part in parts]
    joined = torch.cat([share * one for share, one in zip(shares, gradients, strict=True)])
    torch.testing.assert_close(joined, gradient(name, student, teacher))


def test_an_unknown_loss_names_the_known_and_the_closest() -> None:
    with pytest.raises(BadInput, match=r"unknown loss 'foward-kl'\. Known: .*forward-kl.*Did you mean 'forward-kl'\?"):
        find("foward-kl")


def test_a_third_party_adds_losses_and_may_not_take_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = find("forward-kl")
    plugin = SimpleNamespace(LOSSES={"mine": mine})
    entry = SimpleNamespace(load=lambda: plugin)
    monkeypatch.setattr(registry, "_third_party", lambda group: {"plugin": entry})
    known.cache_clear()
    try:
        assert find("mine") is mine
        known.cache_clear()
        plugin.LOSSES = {"mse": mine}
        with pytest.raises(BadInput, match="two packages define the loss 'mse'"):
            find("mse")
    finally:
        known.cache_clear()


def test_layer_maps() -> None:
    assert layer_map("last", 2, 6) == [(2, 6)]
    assert layer_map("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_map("uniform", 2, 3) == [(1, 2), (2, 3)]  # 1.5 up
    assert layer_map("uniform", 4, 1) == [(1, 1), (2, 1), (3, 1), (4, 1)]  # never the embeddings
    assert layer_map([[0, 0], (2, 6)], 2, 6) == [(0, 0), (2, 6)]


@pytest.mark.parametrize("pair", [(3, 6), (2, 7), (-1, 6)])
def test_a_layer_that_does_not_exist_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="student has layers 0 to 2, the teacher 0 to 6"):
        layer_map([pair], 2, 6)
