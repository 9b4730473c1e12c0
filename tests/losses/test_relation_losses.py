"""MiniLMv2, RKD, similarity-preserving, contrastive and affinity losses against their formulas, as loops in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgekd.errors import BadInput
from edgekd.losses.relations import affinity, contrastive, minilm, rkd_angle, rkd_distance, similarity

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def huber(gap: float) -> float:
    return gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5


def samples(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, 3), torch.randn(count, 5)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_minilm_by_loops_with_widths_that_differ(heads: int) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6), torch.randn(2, 4, 12)
    found = []
    for b, length in enumerate((4, 2)):
        for head, i in itertools.product(range(heads), range(length)):
            rows = []
            for whole in (student, teacher):
                d = whole.shape[-1] // heads
                a = whole[b, :length, head * d : (head + 1) * d].double().numpy()
                rows.append(softmax(a @ a[i] / np.sqrt(d)))
            q, p = rows
            found.append((p * np.log(p / q)).sum())
    assert minilm(student, teacher, MASK, heads).item() == pytest.approx(np.mean(found), rel=1e-5)


def test_relation_heads_that_do_not_divide_both_widths_are_refused_with_those_that_do() -> None:
    with pytest.raises(BadInput, match=r"12 relation heads do not divide .*\(128\).*\(384\).* one of 1, 2, 4, 8, 16"):
        minilm(torch.randn(2, 4, 128), torch.randn(2, 4, 384), MASK, 12)


def test_rkd_distance_by_loops() -> None:
    student, teacher = samples()
    pairs = list(itertools.combinations(range(6), 2))
    distances = [
        np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
        for x in (student.double().numpy(), teacher.double().numpy())
    ]
    s, t = (d / d.mean() for d in distances)
    right = np.mean([huber(gap) for gap in s - t])
    assert rkd_distance(student, teacher).item() == pytest.approx(right, rel=1e-5)


def test_rkd_angle_by_loops() -> None:
    student, teacher = samples()

    def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    s, t = student.double().numpy(), teacher.double().numpy()
    right = np.mean([huber(cosine(s, *one) - cosine(t, *one)) for one in itertools.permutations(range(6), 3)])
    assert rkd_angle(student, teacher).item() == pytest.approx(right, rel=1e-5)


def test_similarity_by_loops() -> None:
    student, teacher = samples()
    total = 0.0
    for i in range(6):
        rows = []
        for x in (student.double().numpy(), teacher.double().numpy()):
            row = np.array([x[i] @ x[j] for j in range(6)])
            rows.append(row / np.linalg.norm(row))
        total += ((rows[0] - rows[1]) ** 2).sum()
    assert similarity(student, teacher).item() == pytest.approx(total / 36, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.04, 0.5])
def test_contrastive_by_loops(temperature: float) -> None:
    student, teacher = samples()
    total = 0.0
    for i in range(6):
        rows = []
        for x in (student.double().numpy(), teacher.double().numpy()):
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            rows.append(softmax(np.array([unit[i] @ unit[j] for j in range(6) if j != i]) / temperature))
        q, p = rows
        total += (p * np.log(p / q)).sum()
    assert contrastive(student, teacher, temperature).item() == pytest.approx(total / 6, rel=1e-4)


def test_affinity_by_loops_over_images_and_over_texts() -> None:
    student, teacher = samples()
    total = 0.0
    for one, other in ((0, 1), (1, 0)):
        for i in range(3):
            q, p = (
                softmax(np.array([x[2 * i + one] @ x[2 * j + other] for j in range(3)]))
                for x in (student.double().numpy(), teacher.double().numpy())
            )
            total += (p * np.log(p / q)).sum() / 3
    assert affinity(student, teacher).item() == pytest.approx(total / 2, rel=1e-5)
    odd = torch.cat((student, student[:1])), torch.cat((teacher, teacher[:1]))
    assert affinity(*odd).item() == pytest.approx(total / 2, rel=1e-5)  # it has no partner


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, similarity, contrastive])
def test_a_turned_and_scaled_copy_of_the_teacher_has_its_relations(loss) -> None:
    _, teacher = samples()
    turn, _ = torch.linalg.qr(torch.randn(8, 5))  # into a wider space
    assert loss(3 * teacher @ turn.T, teacher).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, similarity, contrastive, affinity])
@pytest.mark.parametrize("count", [1, 2])
def test_batches_too_small_for_a_relation_do_no_harm(loss, count: int) -> None:
    student, teacher = samples(count)
    student.requires_grad_()
    found = loss(student, teacher)
    found.backward()
    assert torch.isfinite(student.grad).all()
    if count == 1 or loss is not similarity:
        assert found.item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, similarity, contrastive, affinity])
def test_samples_that_the_student_cannot_tell_apart_give_no_wild_gradient(loss) -> None:
    # Two texts that become one after vocabulary trimming: equal for the student, different for the teacher.
    student, teacher = samples()
    usual, twins = student.clone().requires_grad_(), student.clone()
    twins[1] = twins[0]
    twins.requires_grad_()
    loss(usual, teacher).backward()
    loss(twins, teacher).backward()
    assert twins.grad.norm() < 100 * usual.grad.norm()
    same = torch.ones(6, 3, requires_grad=True)  # a student that has collapsed
    loss(same, teacher).backward()
    assert torch.isfinite(same.grad).all()
