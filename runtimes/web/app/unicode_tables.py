"""Writes src/text/unicode_tables.ts: what the library knows of each character.

``python runtimes/web/app/unicode_tables.py`` (needs the package tokenizers). The properties are those that
``runtimes/linux/text/unicode_tables.py`` reads off the ``tokenizers`` library. Decompositions and lower case are left
to the browser, whose answers for a character that has been assigned never change; which characters have one is not.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import tokenizers
from tokenizers import normalizers

HERE = Path(__file__).resolve().parent
OUT = HERE / "src" / "text" / "unicode_tables.ts"
CORE = HERE.parents[1] / "linux" / "text" / "unicode_tables.py"
OWN = ("decomposes", "lowers")  # more bits: whether the library changes the character


def main() -> int:
    """Write the module."""
    core = load(CORE)
    nfd, (decompositions, lowered) = normalizers.NFD().normalize_str, core.changed()
    flags = core.flags_of(decompositions)
    for c in core.CHARACTERS:
        bits = (c in decompositions or ord(c) in core.HANGUL, c in lowered)
        flags[ord(c)] |= sum(bit << (len(core.FLAGS) + place) for place, bit in enumerate(bits))
    names = [f"{name}: {1 << bit}" for bit, name in enumerate((*core.FLAGS, *OWN))]
    parts = [
        f"// Made by unicode_tables.py from tokenizers {tokenizers.__version__}: do not edit.",
        "// A table is a list of runs, in base 36: how many characters, and the value that they share.\n",
        "export const FLAGS = {",
        *(f"  {name}," for name in names),
        "} as const;\n",
        *table("RUNS", flags),
        *table("ORDERS", core.combining_classes(nfd)),
    ]
    OUT.write_text("\n".join(parts), encoding="utf-8")
    sys.stdout.write(f"{OUT.name}: {OUT.stat().st_size} bytes\n")
    return 0


def load(path: Path) -> ModuleType:
    """A module by its file."""
    spec = importlib.util.spec_from_file_location(f"core_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(name: str, values: list[int]) -> Iterator[str]:
    """The runs as one string over several lines."""
    starts = [code for code in range(len(values)) if code == 0 or values[code] != values[code - 1]]
    ends = [*starts[1:], len(values)]
    yield f"export const {name} ="
    lines, line = [], ""
    for start, end in zip(starts, ends, strict=True):
        run = f"{base36(end - start)} {base36(values[start])} "
        if len(line) + len(run) > 110:
            lines.append(line)
            line = ""
        line += run
    lines.append(line.rstrip())
    yield " +\n".join(f'  "{one}"' for one in lines) + ";\n"


def base36(number: int) -> str:
    """As JavaScript's ``parseInt(text, 36)`` reads it."""
    digits = ""
    while number or not digits:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits


if __name__ == "__main__":
    sys.exit(main())
