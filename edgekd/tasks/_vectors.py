"""What tasks share whose output is a vector: two vectors are as alike as their cosine."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.tasks._contract import Encoded, Example

ALIKE = 0.99  # cosine of two vectors that count as the same


def take(logits_H: Any, encoded: Encoded) -> Any:
    """The row's vector as it is."""
    return logits_H


def agree(outputs: Any, others: Any) -> np.ndarray | None:
    """1.0 where the two vectors of a row have a cosine of at least 0.99, else 0.0; None for unequal widths."""
    ours, theirs = np.asarray(outputs, np.float64), np.asarray(others, np.float64)
    return None if ours.shape != theirs.shape else (cosine(ours, theirs) >= ALIKE).astype(np.float64)


def answer(output: Any, example: Example, labels: Any, top_k: int = 3) -> dict[str, list[float]]:
    """``{"embedding": [...]}``."""
    return {"embedding": [float(x) for x in np.asarray(output)]}


def cosine(left_NH: np.ndarray, right_NH: np.ndarray) -> np.ndarray:
    """Cosines of the rows of two matrices, [N]."""
    lengths_N = np.linalg.norm(left_NH, axis=-1) * np.linalg.norm(right_NH, axis=-1)
    return (left_NH * right_NH).sum(-1) / np.maximum(lengths_N, 1e-12)
