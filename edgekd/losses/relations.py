"""Losses between relations, which exist at any width: tokens within a layer, and samples within a batch.

Pure functions of tensors. ``minilm`` relates the tokens of each text; it refuses a number of relation heads that does
not divide both widths. The others relate the B samples of a batch to each other, each in its own model's space
(``affinity``: the two halves of its pairs). They depend on which samples share a batch, by definition, and are 0 where
a batch is too small to hold a relation (two samples for ``similarity``, two pairs for ``affinity``, three samples for
the others); sequence padding never reaches them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from edgekd.errors import BadInput
from edgekd.losses._contract import Loss

LOWEST = torch.finfo(torch.float32).min
NEAR = 1e-3  # of the mean distance: two samples nearer than this have no direction between them


def minilm(
    student_BSH: torch.Tensor, teacher_BSG: torch.Tensor, mask_BS: torch.Tensor, heads: int = 12
) -> torch.Tensor:
    """``mean over relation heads and real queries of KL(r_t || r_s)``, r = softmax(A A^T / sqrt(d)) per relation head.

    A [S, d] is one of the ``heads`` equal slices of a layer's queries, keys or values; d is the model's own width
    divided by ``heads``, so neither widths nor attention heads need to agree. Real tokens (mask 1) attend to real
    tokens. Shapes: [B, S, H], [B, S, G], [B, S]. Returns a scalar >= 0 in nats. Raises BadInput where ``heads``
    does not divide both widths. MiniLMv2 (Wang et al. 2020, arXiv:2012.15828), which adds this up over queries, keys
    and values.
    """
    widths = student_BSH.shape[-1], teacher_BSG.shape[-1]
    if any(width % heads for width in widths):
        common = math.gcd(*widths)
        fitting = [n for n in range(1, common + 1) if common % n == 0]
        raise BadInput(
            f"{heads} relation heads do not divide the widths of student ({widths[0]}) and teacher ({widths[1]})",
            where="distill.losses",
            todo=f"Set heads of minilm to one of {', '.join(map(str, fitting))}.",
        )

    def relation(a_BSH: torch.Tensor) -> torch.Tensor:
        a_BrSd = a_BSH.float().unflatten(-1, (heads, -1)).transpose(1, 2)
        scores_BrSS = _dots(a_BrSd) / math.sqrt(a_BrSd.shape[-1])
        return scores_BrSS.masked_fill(mask_BS[:, None, None, :] == 0, LOWEST).log_softmax(-1)

    student, teacher = relation(student_BSH), relation(teacher_BSG.detach())
    divergence_BS = (teacher.exp() * (teacher - student)).sum(-1).mean(1)
    return (divergence_BS * mask_BS).sum() / mask_BS.sum().clamp(min=1)


def rkd_distance(student_BD: torch.Tensor, teacher_BE: torch.Tensor) -> torch.Tensor:
    """``mean over pairs of Huber(|s_i - s_j| / mu_s - |t_i - t_j| / mu_t)``, mu the mean distance of the batch.

    Shapes: [B, D], [B, E]. Returns a scalar >= 0. RKD (Park et al. 2019, arXiv:1904.05068; Huber with delta 1),
    averaged over pairs of distinct samples.
    """
    if len(student_BD) < 3:  # one pair: its distance is the mean
        return 0.0 * student_BD.float().sum()

    def distances(x_BD: torch.Tensor) -> torch.Tensor:
        found = F.pdist(x_BD.float())
        return found / found.mean().clamp(min=torch.finfo(torch.float32).tiny)

    return F.smooth_l1_loss(distances(student_BD), distances(teacher_BE.detach()))


def rkd_angle(student_BD: torch.Tensor, teacher_BE: torch.Tensor) -> torch.Tensor:
    """``mean over triples of Huber(cos of the angle s_i s_j s_k - cos of the angle t_i t_j t_k)``.

    Angles at j are the dot products of the unit vectors from j to i and to k; samples nearer than 1e-3 of the mean
    distance have no direction and count as 0. Memory grows with B^3. Shapes: [B, D], [B, E]. Returns a scalar >= 0.
    RKD (Park et al. 2019, arXiv:1904.05068), averaged over triples of distinct samples.
    """
    size = len(student_BD)
    if size < 3:
        return 0.0 * student_BD.float().sum()

    def cosines(x_BD: torch.Tensor) -> torch.Tensor:
        edges_BBD = x_BD.float()[None, :, :] - x_BD.float()[:, None, :]
        lengths_BB1 = edges_BBD.norm(dim=-1, keepdim=True)
        near_BB1 = lengths_BB1 <= NEAR * lengths_BB1.mean()
        units_BBD = edges_BBD / lengths_BB1.masked_fill(near_BB1, math.inf)
        return _dots(units_BBD)

    # Triples with a sample twice have the same cosine, 0 or 1, on both sides: they add nothing but must not count.
    total = F.smooth_l1_loss(cosines(student_BD), cosines(teacher_BE.detach()), reduction="sum")
    return total / (size * (size - 1) * (size - 2))


def similarity(student_BD: torch.Tensor, teacher_BE: torch.Tensor) -> torch.Tensor:
    """``|| G_s - G_t ||_F^2 / B^2``, G = X X^T with every row scaled to length 1.

    Shapes: [B, D], [B, E]. Returns a scalar >= 0; it shrinks as 1 / B. Similarity-preserving distillation (Tung and
    Mori 2019, arXiv:1907.09682); beside other terms it needs a large weight (the paper's experiments use 3000).
    """

    def gram(x_BD: torch.Tensor) -> torch.Tensor:
        return F.normalize(_dots(x_BD.float()), dim=-1)

    return (gram(student_BD) - gram(teacher_BE.detach())).square().mean()


def contrastive(student_BD: torch.Tensor, teacher_BE: torch.Tensor, temperature: float = 0.04) -> torch.Tensor:
    """``mean over i of KL(p_i || q_i)``: p_i and q_i say which samples of the batch are the neighbours of sample i.

    ``p_i = softmax over j != i of cos(t_i, t_j) / temperature``, q_i likewise of the student's. CompRess in its form
    with an own set of anchors for each model (Koohpayegani et al. 2020, arXiv:2010.14713, "Ours-2q", temperature
    0.04); the anchors are the rest of the batch, with gradient, instead of a queue. Student samples are never compared
    with teacher samples, as they are in InfoNCE: widths may differ and no projection is needed. Shapes: [B, D],
    [B, E]. Returns a scalar >= 0 in nats.
    """

    def neighbours(x_BD: torch.Tensor) -> torch.Tensor:
        x_BD = F.normalize(x_BD.float(), dim=-1)
        itself_BB = torch.eye(len(x_BD), dtype=torch.bool, device=x_BD.device)
        return (_dots(x_BD) / temperature).masked_fill(itself_BB, LOWEST).log_softmax(-1)

    student, teacher = neighbours(student_BD), neighbours(teacher_BE.detach())
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


def affinity(student_BD: torch.Tensor, teacher_BE: torch.Tensor) -> torch.Tensor:
    """``(mean over images of KL(p_i || q_i) + mean over texts of KL(p^j || q^j)) / 2`` over the pairs of a batch.

    Rows 2i and 2i + 1 are the image and the text of pair i; p_i is the softmax of the teacher's logits of image i with
    every text, p^j that of text j with every image, q likewise of the student's. A logit is a dot product: the scale is
    in the embeddings. TinyCLIP's affinity mimicking (Wu et al. 2023, arXiv:2309.12314), CLIP-KD's contrastive
    relations (Yang et al. 2023, arXiv:2307.12732); widths may differ. Shapes: [B, D], [B, E]; an odd last row has no
    partner and does not count. Returns a scalar >= 0 in nats.
    """
    if len(student_BD) < 2:
        return 0.0 * student_BD.float().sum()

    def logits(x_BD: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x_BD.device.type, enabled=False):
            return x_BD[: len(x_BD) // 2 * 2 : 2].float() @ x_BD[1::2].float().T

    def divergence(student_PP: torch.Tensor, teacher_PP: torch.Tensor) -> torch.Tensor:
        student, teacher = student_PP.log_softmax(-1), teacher_PP.log_softmax(-1)
        return (teacher.exp() * (teacher - student)).sum(-1).mean()

    student, teacher = logits(student_BD), logits(teacher_BE.detach())
    return (divergence(student, teacher) + divergence(student.T, teacher.T)) / 2


def _dots(rows: torch.Tensor) -> torch.Tensor:
    """All dot products of the rows of a matrix, in float32 also where mixed precision is on."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.transpose(-1, -2)


LOSSES = {
    "minilm": Loss(minilm, "relations"),
    "rkd-distance": Loss(rkd_distance, "samples"),
    "rkd-angle": Loss(rkd_angle, "samples"),
    "similarity": Loss(similarity, "samples"),
    "contrastive": Loss(contrastive, "samples"),
    "affinity": Loss(affinity, "samples"),
}
