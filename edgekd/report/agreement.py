"""How far artefacts of one scheme agree: each pair of them, and each with its Program and the float student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

CLOSE = 1e-5  # of the range of the outputs: float arithmetic in another order


@dataclass(frozen=True)
class Answers:
    """Outputs of a model, [C] or [W, C] each, for these rows of the test split (ascending)."""

    rows: Sequence[int]
    outputs: Sequence[np.ndarray]


def pairs(models: Mapping[str, Answers], agree: Callable[[Any, Any], np.ndarray | None]) -> list[dict[str, Any]]:
    """One entry for every two models, over the rows that both answered.

    ``agreement`` is the mean of ``agree`` (the task's own; None where it has no meaning), ``identical`` the share of
    rows with equal outputs bit for bit, ``close`` of those within ``CLOSE``, and ``largest`` the largest difference as
    a share of the range. ``margin`` is the largest lead of a first over a second choice, by the first model, among the
    rows whose answers differ: small when near-ties fell the other way. It is None where none differs, and for outputs
    that are not one choice a row.
    """
    found = []
    for one, other in combinations(models, 2):
        mine, theirs = models[one], models[other]
        rows = sorted(set(mine.rows) & set(theirs.rows))
        if not rows:
            continue
        left, right = (_picked(model, rows) for model in (mine, theirs))
        if left[0].ndim == 2:  # one of them may have been cut earlier
            shortest = [min(len(a), len(b)) for a, b in zip(left, right, strict=True)]
            left, right = ([a[:n] for a, n in zip(some, shortest, strict=True)] for some in (left, right))
        mine_V, theirs_V = (np.concatenate([one.ravel() for one in some]) for some in (left, right))
        reach = max(float(np.ptp(mine_V)), 1e-30)
        moved_N: np.ndarray = np.zeros(len(rows), np.float32)
        np.maximum.at(moved_N, np.repeat(np.arange(len(rows)), [one.size for one in left]), np.abs(mine_V - theirs_V))
        moved_N /= reach
        shares_N = agree(left, right)
        found.append(
            {
                "one": one,
                "other": other,
                "rows": len(rows),
                "agreement": None if shares_N is None else float(np.mean(shares_N)),
                "identical": float((moved_N == 0).mean()),
                "close": float((moved_N <= CLOSE).mean()),
                "largest": float(moved_N.max()),
                "margin": None if shares_N is None else _margin(left, shares_N),
            }
        )
    return found


def _picked(model: Answers, rows: Sequence[int]) -> list[np.ndarray]:
    place = {row: index for index, row in enumerate(model.rows)}
    return [model.outputs[place[row]] for row in rows]


def _margin(outputs: Sequence[np.ndarray], shares_N: np.ndarray) -> float | None:
    differing = [one for one, share in zip(outputs, shares_N, strict=True) if share < 1]
    if not differing or differing[0].ndim != 1 or len(differing[0]) < 2:
        return None
    top_M2 = np.sort(np.stack(differing), axis=-1)[:, -2:]
    return float((top_M2[:, 1] - top_M2[:, 0]).max())
