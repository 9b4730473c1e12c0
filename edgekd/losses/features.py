"""Losses between hidden states. Pure functions of tensors."""

from __future__ import annotations

import torch


def hidden_mse(student_BSH: torch.Tensor, teacher_BSH: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the hidden units of real tokens (mask 1); padding changes nothing.

    Shapes: [B, S, H] both, [B, S]. Scalar. The teacher gets no gradient. TinyBERT (arXiv:1909.10351, section 3),
    without a projection.
    """
    keep_BS1 = mask_BS[..., None].to(student_BSH.dtype)
    squares = ((student_BSH - teacher_BSH.detach()) * keep_BS1).square().sum()
    return squares / (keep_BS1.sum() * student_BSH.shape[-1])
