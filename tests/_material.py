"""What the tests are made of: where real data lie, and sentences that a tiny model learns in seconds."""

from __future__ import annotations

import os
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Real data sets and teachers are not part of the project: point EDGEKD_SHARED at a folder with data/ and teachers/.
SHARED = Path(os.environ.get("EDGEKD_SHARED", ROOT.parent / "shared"))

WORDS = {
    "fruit": "apple banana cherry grape lemon mango peach plum",
    "metal": "copper iron nickel silver steel tin zinc bronze",
    "river": "amazon danube ganges nile rhine thames volga yukon",
}
FILLER = "please tell me more about the old and new kinds of this or that one in our long list of things".split()


def tiny_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of filler words around one or two words of a class, in a fixed order."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = list(WORDS)[number % len(WORDS)]
        words = chance.choices(FILLER, k=chance.randint(2, 9))
        words.insert(chance.randrange(len(words) + 1), chance.choice(WORDS[label].split()))
        rows.append((" ".join(words), label))
    return rows
