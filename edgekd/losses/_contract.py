"""What a loss is, how a recipe's name finds it, and which layers it compares.

A module of losses holds pure functions of tensors and a table ``LOSSES: dict[str, Loss]`` from the names that a
recipe uses to those functions. Third parties add a module through the entry-point group ``edgekd.losses``.
Every loss is a scalar tensor >= 0 that is 0 where the student equals the teacher, is computed in float32, and gives
the teacher no gradient. This module refuses unknown names, names given twice, and layers that do not exist; it
imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from edgekd import registry
from edgekd.errors import BadInput, closest

Compares = Literal["outputs", "hidden", "attention", "relations", "samples"]


@dataclass(frozen=True)
class Loss:
    """A function and what it compares, which says what it is called with.

    - ``outputs``: ``f(student_MK, teacher_MK, temperature)``, the mean over M distributions.
    - ``hidden``: ``f(student_BSH, teacher_BSH, mask_BS)``; pooled states come with S = 1. Widths are equal (see
      ``features.project``).
    - ``attention``: ``f(student_BhSS, teacher_BgSS, mask_BS)``, probabilities; the head counts may differ.
    - ``relations``: ``f(student_BSH, teacher_BSG, mask_BS, heads)``, once for each of query, key and value.
    - ``samples``: ``f(student_BD, teacher_BE)``, the B samples of one batch; the widths may differ. These are the
      only losses that depend on which samples share a batch.
    """

    function: Callable[..., Any]
    compares: Compares


@cache
def known() -> Mapping[str, Loss]:
    """All losses by name, built-in and third-party; raises BadInput where two modules give one name."""
    found: dict[str, Loss] = {}
    for module in registry.names("losses"):
        table: Mapping[str, Loss] = registry.load("losses", module).LOSSES
        for name in sorted(found.keys() & table.keys()):
            raise BadInput(f"two packages define the loss '{name}'", where=module, todo="Uninstall one of them.")
        found |= table
    return found


def find(name: str) -> Loss:
    """The loss that a recipe calls ``name``; raises BadInput that lists the known names."""
    losses = known()
    if name not in losses:
        names = sorted(losses)
        raise BadInput(
            f"unknown loss '{name}'", where="distill.losses", todo=f"Known: {', '.join(names)}.{closest(name, names)}"
        )
    return losses[name]


def layer_map(how: str | Sequence[Sequence[int]], student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Which student layer is compared with which teacher layer: pairs counted from 1; 0 is the embeddings.

    ``last``: the two last layers. ``uniform``: the s-th of n student layers with the teacher's layer round(s T / n)
    (halves up), at least the first; both last layers meet (the equal steps of TinyBERT, arXiv:1909.10351).
    Otherwise explicit pairs, checked against the two depths. Raises BadInput.
    """
    if how == "last":
        return [(student_layers, teacher_layers)]
    if how == "uniform":
        layers = range(1, student_layers + 1)
        return [(s, max(1, (2 * s * teacher_layers + student_layers) // (2 * student_layers))) for s in layers]
    if isinstance(how, str):
        raise BadInput(
            f"unknown layer map '{how}'", where="distill.losses", todo="Known: last, uniform, [[student, teacher], ..]."
        )
    pairs = [(student, teacher) for student, teacher in how]
    for student, teacher in pairs:
        if not (0 <= student <= student_layers and 0 <= teacher <= teacher_layers):
            raise BadInput(
                f"layers [{student}, {teacher}]: the student has layers 0 to {student_layers}, "
                f"the teacher 0 to {teacher_layers}",
                where="distill.losses",
                todo="0 is the output of the embeddings.",
            )
    return pairs
