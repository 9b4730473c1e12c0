"""Losses between the student's and the teacher's logits. Pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def forward_kl(student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch.

    The factor T^2 keeps the size of the gradient independent of T (Hinton et al. 2015, arXiv:1503.02531, section 2).
    Shapes: [B, C] both, any float dtype; computed in float32. Returns a scalar >= 0. The teacher gets no gradient.
    """
    student = F.log_softmax(student_BC.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_BC.detach().float() / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
