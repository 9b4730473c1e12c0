"""Losses between what the student and the teacher put out. Pure functions of tensors.

All take ``student_MK``, ``teacher_MK`` (M distributions over K classes, as logits of any float dtype) and the
temperature T, and return the mean over M: leaving rows out or splitting a batch changes only which rows are averaged.
A logit of ``MISSING`` or below stands for a class that a row does not have (a word beyond the end of a text); it
counts in no loss. The KL terms carry T^2, which keeps the size of their gradient when T changes (Hinton et al. 2015,
arXiv:1503.02531, section 2). Refuses nothing: shapes are the caller's business.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekd.losses._contract import Loss

MISSING = -1e4
LOWEST = torch.finfo(torch.float32).min


def forward_kl(student_MK: torch.Tensor, teacher_MK: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``T^2 KL(p || q)``, p = softmax(teacher / T), q = softmax(student / T): the student covers what the teacher says.

    Shapes: [M, K] both. Returns a scalar >= 0 in nats. Hinton et al. 2015, arXiv:1503.02531.
    """
    return temperature**2 * _kl(_log_p(teacher_MK.detach(), temperature), _log_p(student_MK, temperature)).mean()


def reverse_kl(student_MK: torch.Tensor, teacher_MK: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``T^2 KL(q || p)``, p = softmax(teacher / T), q = softmax(student / T): the student avoids what p excludes.

    Shapes: [M, K] both. Returns a scalar >= 0 in nats. Gu et al. 2023, MiniLLM, arXiv:2306.08543.
    """
    return temperature**2 * _kl(_log_p(student_MK, temperature), _log_p(teacher_MK.detach(), temperature)).mean()


def jensen_shannon(student_MK: torch.Tensor, teacher_MK: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``T^2 (KL(p || m) + KL(q || m)) / 2`` with m = (p + q) / 2, p and q as in ``forward_kl``.

    Shapes: [M, K] both. Returns a scalar in [0, T^2 log 2], finite also where both probabilities underflow.
    Lin 1991, doi:10.1109/18.61115; for distillation Agarwal et al. 2023, arXiv:2306.13649, with beta = 1/2.
    """
    student, teacher = _log_p(student_MK, temperature), _log_p(teacher_MK.detach(), temperature)
    middle = torch.logaddexp(student, teacher) - torch.log(student.new_tensor(2.0))
    return temperature**2 * (_kl(teacher, middle) + _kl(student, middle)).mean() / 2


def mse(student_MK: torch.Tensor, teacher_MK: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``sum_k (z_k - v_k)^2 / K`` of the logits z and v, K counting the classes that the row has.

    The temperature has no effect: T^2 (z / T - v / T)^2 = (z - v)^2. Shapes: [M, K] both. Returns a scalar >= 0.
    Ba and Caruana 2014, arXiv:1312.6184; compared with KL by Kim et al. 2021, arXiv:2105.08919.
    """
    student, teacher, there_MK = _present(student_MK, teacher_MK)
    return ((student - teacher).square().sum(-1) / there_MK.sum(-1).clamp(min=1)).mean()


def cosine(student_MK: torch.Tensor, teacher_MK: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``1 - cos(z, v)`` of the two output vectors, computed as half the squared distance of their directions.

    The temperature has no effect: a direction has no scale. Shapes: [M, K] both. Returns a scalar in [0, 2]. The
    cosine loss of DistilBERT (Sanh et al. 2019, arXiv:1910.01108), here on the outputs.
    """
    student, teacher, _ = _present(student_MK, teacher_MK)
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean() / 2


def decoupled_kd(
    student_MK: torch.Tensor,
    teacher_MK: torch.Tensor,
    temperature: float = 1.0,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> torch.Tensor:
    """``T^2 (alpha KL(b_p || b_q) + beta KL(p' || q'))``: the target class and the rest, weighted apart.

    b = (target, all others) as two probabilities; p' and q' = the others among themselves; p and q as in
    ``forward_kl``. Plain KL is the case alpha = 1, beta = 1 - p_target: it silences the rest exactly where the teacher
    is sure, which the fixed beta undoes. The target is the teacher's own argmax, the paper's the label: where a
    teacher is right the two are one, most transfer rows have no label, and where it is wrong the split around the
    class it is sure of remains the one that the argument is about; labels have their own term in the training loss.
    Shapes: [M, K] both. Returns a scalar >= 0; 0 where K = 1. Zhao et al. 2022, arXiv:2203.08679;
    alpha = 1 and beta = 8 are their CIFAR-100 setting.
    """
    student, teacher = _log_p(student_MK, temperature), _log_p(teacher_MK.detach(), temperature)
    target_M1 = teacher.argmax(-1, keepdim=True)

    def split(log_p_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        others = log_p_MK.scatter(-1, target_M1, LOWEST)
        binary = torch.cat([log_p_MK.gather(-1, target_M1), others.logsumexp(-1, keepdim=True)], -1)
        return binary, others.log_softmax(-1)

    (student_binary, student_others), (teacher_binary, teacher_others) = split(student), split(teacher)
    target, rest = _kl(teacher_binary, student_binary), _kl(teacher_others, student_others)
    return temperature**2 * (alpha * target + beta * rest).mean()


def _log_p(logits_MK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities in float32, finite also for a logit of minus infinity."""
    return F.log_softmax(logits_MK.float() / temperature, dim=-1).clamp(min=LOWEST)


def _kl(left_MK: torch.Tensor, right_MK: torch.Tensor) -> torch.Tensor:
    """KL(left || right) of log-probabilities, [M]."""
    return (left_MK.exp() * (left_MK - right_MK)).sum(-1)


def _present(student_MK: torch.Tensor, teacher_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both in float32 with zeros for missing classes, and which there are."""
    there_MK = teacher_MK.detach() > MISSING
    return student_MK.float() * there_MK, teacher_MK.detach().float() * there_MK, there_MK


LOSSES = {
    "forward-kl": Loss(forward_kl, "outputs"),
    "reverse-kl": Loss(reverse_kl, "outputs"),
    "jensen-shannon": Loss(jensen_shannon, "outputs"),
    "mse": Loss(mse, "outputs"),
    "cosine": Loss(cosine, "outputs"),
    "decoupled-kd": Loss(decoupled_kd, "outputs"),
}
