"""Schemes: which numbers an artefact holds. A scheme is data; its reference module says what it means.

Light on purpose: the plan reads this to refuse what a target cannot carry, before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekd.errors import BadInput, closest


@dataclass(frozen=True)
class Scheme:
    """Weights symmetric per output channel, activations affine per tensor, embeddings symmetric per row."""

    name: str
    weight_bits: int
    activations: Literal["none", "static"]
    embedding_bits: int
    summary: str


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", 32, "none", 32, "the float sibling"),
        Scheme(
            "w8a8",
            8,
            "static",
            8,
            "int8 weights per channel, int8 activations per tensor, static; int8 embeddings",
        ),
    )
}


def get(name: str) -> Scheme:
    """The scheme of this name; raises BadInput that lists the known ones."""
    if name not in SCHEMES:
        known = list(SCHEMES)
        raise BadInput(f"unknown scheme '{name}'", todo=f"Known: {', '.join(known)}.{closest(name, known)}")
    return SCHEMES[name]
