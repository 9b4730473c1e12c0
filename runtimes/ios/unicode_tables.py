"""Writes Sources/EdgeApp/Text/UnicodeTables.swift: what the Swift tokenizer core knows of each character.

``python runtimes/ios/unicode_tables.py`` (needs the package tokenizers). What is written, and how it is read off the
library, is ``runtimes/linux/text/unicode_tables.py``'s; here it becomes lists of numbers, which Swift compiles fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "linux" / "text"))
import unicode_tables as tables  # noqa: E402  (the sibling that asks the library)

OUT = HERE / "Sources" / "EdgeApp" / "Text" / "UnicodeTables.swift"


def main() -> int:
    """Write the file."""
    nfd, (decompositions, lowered) = tables.normalizers.NFD().normalize_str, tables.changed()
    pool: list[int] = []
    parts = [
        f"// Made by unicode_tables.py from tokenizers {tables.tokenizers.__version__}: do not edit.",
        "enum UnicodeTables {",
        *(f"  static let {name}: UInt16 = {1 << bit}" for bit, name in enumerate(tables.FLAGS)),
        "",
        "  // A value holds from a character on to the next entry.",
        *_runs("flags", tables.flags_of(decompositions)),
        *_runs("combiningClass", tables.combining_classes(nfd)),
        *_mapping("decomposition", decompositions, pool),
        *_mapping("lowercase", lowered, pool),
        *_list("static let pool", "UInt32", pool),
        "}\n",
    ]
    OUT.write_text("\n".join(parts), encoding="utf-8")
    sys.stdout.write(f"{OUT.name}: {OUT.stat().st_size} bytes\n")
    return 0


def _runs(name: str, values: list[int]) -> Iterator[str]:
    starts = [code for code in range(len(values)) if code == 0 or values[code] != values[code - 1]]
    yield from _list(f"static let {name}From", "UInt32", starts)
    yield from _list(f"static let {name}Value", "UInt16", (values[code] for code in starts))


def _mapping(name: str, table: dict[str, str], pool: list[int]) -> Iterator[str]:
    entries = sorted(table.items())
    starts = []
    for _, text in entries:
        starts.append(len(pool))
        pool.extend(map(ord, text))
    yield from _list(f"private static let {name}From", "UInt32", (ord(c) for c, _ in entries))
    yield from _list(f"private static let {name}Start", "UInt16", starts)
    yield from _list(f"private static let {name}Count", "UInt16", (len(text) for _, text in entries))
    fields = ", ".join(f"{field.lower()}: {name}{field}" for field in ("From", "Start", "Count"))
    yield f"  static let {name} = CharacterMapping({fields})\n"


def _list(name: str, kind: str, values: Iterable[int]) -> Iterator[str]:
    yield f"  {name}: [{kind}] = ["
    line = "   "
    for value in values:
        if len(line) + len(str(value)) > 117:
            yield line
            line = "   "
        line += f" {value},"
    yield line
    yield "  ]\n"


if __name__ == "__main__":
    sys.exit(main())
