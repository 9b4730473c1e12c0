"""Losses between what happens inside: hidden states and attention maps. Pure functions of tensors.

``mask_BS`` is 1 on real tokens. Losses are means over the real tokens of the batch: padding changes neither a loss
nor its gradient, and batches split unevenly add up again when weighted by their real tokens (pairs of them for
``attention-mse``). Different widths are the caller's to bridge with ``project``; different head counts are not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekd.losses._contract import Loss

FLOOR = 1e-8  # below what half precision can hold, and so below any cached probability but 0


def hidden_mse(student_BSH: torch.Tensor, teacher_BSH: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """``mean over real tokens and hidden units of (s - t)^2``.

    Shapes: [B, S, H] both, [B, S]. Returns a scalar >= 0. TinyBERT (Jiao et al. 2019, arXiv:1909.10351).
    """
    return _mean((student_BSH.float() - teacher_BSH.detach().float()).square().mean(-1), mask_BS)


def hidden_cosine(student_BSH: torch.Tensor, teacher_BSH: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """``mean over real tokens of 1 - cos(s, t)``, computed as half the squared distance of the directions.

    Shapes: [B, S, H] both, [B, S]. Returns a scalar in [0, 2]. DistilBERT (Sanh et al. 2019, arXiv:1910.01108).
    """
    student, teacher = F.normalize(student_BSH.float(), dim=-1), F.normalize(teacher_BSH.detach().float(), dim=-1)
    return _mean((student - teacher).square().sum(-1) / 2, mask_BS)


def attention_mse(student_BhSS: torch.Tensor, teacher_BgSS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """``mean over heads and pairs of real tokens of (a - b)^2`` between attention probabilities a and b.

    Where the head counts differ, both are averaged over their heads first. TinyBERT (arXiv:1909.10351)
    compares the scores before the softmax; these are not kept by models, and the probabilities are.
    Shapes: [B, h, S, S], [B, g, S, S], [B, S]. Returns a scalar in [0, 1].
    """
    student, teacher = _heads(student_BhSS, teacher_BgSS)
    return _mean((student - teacher).square().mean(1), mask_BS[:, :, None] * mask_BS[:, None, :])


def attention_kl(student_BhSS: torch.Tensor, teacher_BgSS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """``mean over heads and real queries of KL(b || a)`` between the rows a of the student and b of the teacher.

    Rows are scaled to sum 1 over the real keys, which undoes the rounding of a cache in half precision; where the
    head counts differ, both are averaged over their heads first. Probabilities count as at least 1e-8. Shapes:
    [B, h, S, S], [B, g, S, S], [B, S]. Returns a scalar >= 0 in nats. MiniLM (Wang et al. 2020, arXiv:2002.10957).
    """

    real_B11S = mask_BS[:, None, None, :]

    def logs(rows_BhSS: torch.Tensor) -> torch.Tensor:
        floored = rows_BhSS.clamp(min=FLOOR)
        return floored.log() - (floored * real_B11S).sum(-1, keepdim=True).clamp(min=FLOOR).log()

    student, teacher = (logs(rows) for rows in _heads(student_BhSS, teacher_BgSS))
    return _mean((teacher.exp() * (teacher - student) * real_B11S).sum(-1).mean(1), mask_BS)


def project(student_width: int, teacher_width: int) -> nn.Linear:
    """A learned map [.., student_width] -> [.., teacher_width] that starts orthogonal, with a bias of 0.

    An orthogonal start keeps lengths and angles as far as the widths allow. It belongs to the training: the student
    is exported without it. FitNets (Romero et al. 2014, arXiv:1412.6550), TinyBERT (arXiv:1909.10351).
    """
    layer = nn.Linear(student_width, teacher_width)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _heads(student_BhSS: torch.Tensor, teacher_BgSS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float32, with equally many heads: their own, or one that is the mean of them."""
    student, teacher = student_BhSS.float(), teacher_BgSS.detach().float()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    return student, teacher


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values whose mask is 1; 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


LOSSES = {
    "hidden-mse": Loss(hidden_mse, "hidden"),
    "hidden-cosine": Loss(hidden_cosine, "hidden"),
    "attention-mse": Loss(attention_mse, "attention"),
    "attention-kl": Loss(attention_kl, "attention"),
}
