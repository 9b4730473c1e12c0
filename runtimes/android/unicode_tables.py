"""Writes UnicodeTables.kt: what the C++ core's unicode_tables.hpp says, as Kotlin.

``python runtimes/android/unicode_tables.py`` (needs the package tokenizers). How the properties are found stands in
``runtimes/linux/text/unicode_tables.py``; this is only another way to write them down. A class file holds no large
arrays of numbers, but texts: so the tables are numbers with 36 digits, between blanks.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import tokenizers
from tokenizers import normalizers

HERE = Path(__file__).resolve().parent
OUT = HERE / "core" / "dev" / "edgekd" / "text" / "UnicodeTables.kt"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def main() -> int:
    """Write the tables."""
    OUT.write_text(tables(), encoding="utf-8")
    sys.stdout.write(f"{OUT.name}: {OUT.stat().st_size} bytes\n")
    return 0


def tables() -> str:
    """The Kotlin file."""
    known = _known()
    nfd, (decompositions, lowered) = normalizers.NFD().normalize_str, known.changed()
    parts = [
        f"// Made by unicode_tables.py from tokenizers {tokenizers.__version__}: do not edit.",
        "package dev.edgekd.text\n",
        "internal object UnicodeTables {",
    ]
    parts += [f"    const val {name.upper()} = {1 << bit}" for bit, name in enumerate(known.FLAGS)]
    parts += _table("FLAGS", _runs(known.flags_of(decompositions)))
    parts += _table("COMBINING_CLASSES", _runs(known.combining_classes(nfd)))
    parts += _table("DECOMPOSITIONS", _mappings(decompositions))
    parts += _table("LOWERCASES", _mappings(lowered))
    return "\n".join([*parts, "}", ""])


def _known() -> ModuleType:
    path = HERE.parent / "linux" / "text" / "unicode_tables.py"
    spec = importlib.util.spec_from_file_location("cpp_unicode_tables", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _runs(values: list[int]) -> Iterator[int]:
    """A value holds from a character on to the next entry: the distance from the entry before, and the value."""
    before = 0
    for code, value in enumerate(values):
        if code == 0 or value != values[code - 1]:
            yield from (code - before, value)
            before = code


def _mappings(table: dict[str, str]) -> Iterator[int]:
    """The distance from the character before, how many it becomes, and which."""
    before = 0
    for c, text in sorted(table.items()):
        yield from (ord(c) - before, len(text), *map(ord, text))
        before = ord(c)


def _table(name: str, numbers: Iterable[int]) -> Iterator[str]:
    yield f"\n    val {name} = arrayOf("
    line = ""
    for number in map(_digits, numbers):
        if len(line) + len(number) > 105:
            yield f'        "{line}",'
            line = ""
        line += f" {number}" if line else number
    yield f'        "{line}",'
    yield "    )"


def _digits(number: int) -> str:
    if number < len(DIGITS):
        return DIGITS[number]
    return _digits(number // len(DIGITS)) + DIGITS[number % len(DIGITS)]


if __name__ == "__main__":
    sys.exit(main())
