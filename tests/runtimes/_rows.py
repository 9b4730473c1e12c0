"""What every tokenizer core is asked, beside the texts of the C++ core's tests, and how it is asked in one go."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from threading import Thread

from hypothesis import strategies as st
from test_cpp_tokenizer import CHARACTERS, HARD, ROWS, SNIPPETS, Both, Row

TWENTY = st.lists(ROWS, min_size=20, max_size=20)


def pairs_and_lengths() -> Iterator[Row]:
    """Hard texts, alone and as pairs, cut to many lengths."""
    chance = random.Random(0)
    lengths = [None, *range(6, 24), 64]
    for _ in range(1500):
        yield Row(chance.choice(HARD), chance.choice([None, *HARD]), chance.choice(lengths))


def seeded_rows(seed: str, count: int) -> Iterator[Row]:
    """Pieces of hard texts, words and characters of any plane, alone and as pairs, at any length."""
    chance = random.Random(seed)

    def text() -> str:
        pieces = []
        for _ in range(chance.randrange(6)):
            kind = chance.randrange(4)
            if kind == 0:
                pieces.append(chance.choice(SNIPPETS)[: chance.randrange(40)])
            elif kind == 1:
                pieces.append("".join(chance.choices(CHARACTERS, k=chance.randrange(8))))
            elif kind == 2:
                pieces.append("".join(chance.choices(CHARACTERS[:0x3100], k=chance.randrange(12))))
            else:
                pieces.append("".join(chance.choices("abcdeEIOU'  .,!-\u00e9\u0301\u4e2d123", k=chance.randrange(20))))
        return "".join(pieces)

    for _ in range(count):
        pair = text() if chance.randrange(4) == 0 else None
        yield Row(text(), pair, chance.choice([None, None, *range(5, 40)]))


class InOneGo(Both):
    """The program answers while later rows are still being written; nobody waits for a line and its answer."""

    def mismatches(self, rows: Iterable[Row]) -> tuple[int, list[str]]:
        assert self.process.stdin and self.process.stdout
        asked = list(rows)
        writer = Thread(target=self._write, args=[asked], daemon=True)
        writer.start()
        different = []
        for row in asked:
            core, python = json.loads(self.process.stdout.readline()), self.python_answer(row)
            if core != python:
                different.append(f"{row!a}\n  here   {core}\n  Python {python}")
        writer.join()
        return len(asked), different

    def _write(self, rows: list[Row]) -> None:
        assert self.process.stdin
        for row in rows:
            self.process.stdin.write(row.asked())
        self.process.stdin.flush()
