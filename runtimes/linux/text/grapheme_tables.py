"""Writes grapheme_tables.hpp: which characters a reader takes for one, as far as SentencePiece's tables depend on it.

``python runtimes/linux/text/grapheme_tables.py`` (needs the package tokenizers). As unicode_tables.py: each property is
read off the library's own answer for every character.
"""

from __future__ import annotations

import itertools
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import tokenizers
from tokenizers import normalizers
from unicode_tables import CHARACTERS, constant, runs

OUT = Path(__file__).with_suffix(".hpp")

# The bits of a character, by the names that unicode.cc uses.
FLAGS = (
    "joins",  # with the character before
    "leads",  # is of one with the character after
    "stands",  # joins nothing
    "pictograph",  # joins another over a zero-width joiner
    "consonant",  # joins another over a linker
    "linker",
)


def main() -> int:
    """Write the header."""
    tests = grapheme_tests()
    flags = [0] * 0x110000
    for c in CHARACTERS:
        flags[ord(c)] = sum(tests[name](c) << bit for bit, name in enumerate(FLAGS))
    parts = [
        f"// Made by grapheme_tables.py from tokenizers {tokenizers.__version__}: do not edit.",
        "#pragma once\n",
        '#include "unicode_tables.hpp"\n',
        "namespace edgekd::tables {\n",
        *(f"constexpr uint16_t {constant(name)} = {1 << bit};" for bit, name in enumerate(FLAGS)),
        "",
        *runs("kGraphemeFlags", flags),
        "}  // namespace edgekd::tables\n",
    ]
    OUT.write_text("\n".join(parts), encoding="utf-8")
    sys.stdout.write(f"{OUT.name}: {OUT.stat().st_size} bytes\n")
    return 0


def grapheme_tests() -> dict[str, Callable[[str], bool]]:
    """What is one grapheme: of those under 6 bytes Precompiled looks the whole up, and drops what it does not find.

    With a table of single bytes a text becomes as many marks as it has graphemes. With a table of one character, a
    combining mark behind that is lost, unless both are part of something longer: of two marks the second, where they
    cannot join what is before them.
    """
    every = normalizers.Precompiled(charsmap({bytes([byte]): "!" for byte in range(1, 256)})).normalize_str
    trade, qa = "\u2122", "\u0958"  # a pictograph, an Indic consonant
    mark, dot, joiner, virama, ka = "\u0301", "\u0323", "\u200d", "\u094d", "\u0915"
    over = {c: normalizers.Precompiled(charsmap({c.encode(): "!"})).normalize_str for c in (trade, qa, dot)}
    return {
        "joins": lambda c: len(every("a" + c)) == 1,
        "leads": lambda c: len(every(c + "a")) == 1,
        "stands": lambda c: not over[dot](c + dot + mark).endswith(mark),
        "pictograph": lambda c: over[trade](c + joiner + trade + mark).endswith(mark),
        "consonant": lambda c: over[qa](c + virama + qa + mark).endswith(mark),
        "linker": lambda c: over[qa](ka + c + qa + mark).endswith(mark),
    }


def charsmap(table: Mapping[bytes, str]) -> bytes:
    """A table as SentencePiece precompiles it: the size of a trie, the trie, the texts with a zero byte each."""
    texts, places = b"", {}
    for key, text in table.items():
        places[key] = len(texts)
        texts += text.encode() + b"\0"
    units = {0: 0}
    taken = {0}  # places of units, and of values

    def add(at: int, prefix: bytes) -> None:
        """The children of the node at a place, at `base` exclusive or their label."""
        labels = sorted({key[len(prefix)] for key in places if key.startswith(prefix) and len(key) > len(prefix)})
        base = next(base for base in itertools.count(1) if taken.isdisjoint({base, *(base ^ one for one in labels)}))
        taken.update({base, *(base ^ one for one in labels)})
        units[at] |= (at ^ base) << 10 | (prefix in places) << 8
        if prefix in places:
            units[base] = places[prefix] | 1 << 31
        for one in labels:
            units[base ^ one] = one
            add(base ^ one, prefix + bytes([one]))

    add(0, b"")
    trie = b"".join(struct.pack("<I", units.get(at, 0)) for at in range(max(units) + 257))
    return struct.pack("<I", len(trie)) + trie + texts


if __name__ == "__main__":
    sys.exit(main())
