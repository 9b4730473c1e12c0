"""Held-out splits that do not depend on the order of the rows: each text's hash decides where it goes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Example = dict[str, Any]


def hold_out(
    examples: list[Example], fraction: float, seed: int, text: Callable[[Example], str]
) -> tuple[list[Example], list[Example]]:
    """``(kept, held out)``: about ``fraction`` of each class, at least one where a class has two texts or more.

    Equal texts go to the same side. Row order is kept on both sides; the choice depends on seed and texts only.
    """

    def rank(example: Example) -> str:
        return hashlib.sha256(f"{seed}\n{text(example)}".encode()).hexdigest()

    groups: dict[Any, set[str]] = defaultdict(set)
    for example in examples:
        groups[example.get("label")].add(rank(example))
    held: set[str] = set()
    for ranks in groups.values():
        count = round(len(ranks) * fraction)
        held.update(sorted(ranks)[: max(count, 1) if len(ranks) > 1 else 0])
    return [e for e in examples if rank(e) not in held], [e for e in examples if rank(e) in held]
