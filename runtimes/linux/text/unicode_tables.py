"""Writes unicode_tables.hpp: what the tokenizer core knows of each character.

``python runtimes/linux/text/unicode_tables.py`` (needs the package tokenizers). The ``tokenizers`` library carries
several versions of Unicode at once: its lowercasing, its punctuation and its decompositions are of different years. So
each property is read off the library's own answer for every character; ``unicodedata`` gives only the classes by which
marks are put in order, and they too are checked against the library.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

OUT = Path(__file__).with_suffix(".hpp")
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # decomposed by arithmetic

# The bits of a character, by the names that unicode.hpp uses.
FLAGS = (
    "cleaned",  # clean_text of BertNormalizer removes it
    "blank",  # clean_text makes it a space
    "mark",  # strip_accents of BertNormalizer removes it
    "chinese",  # handle_chinese_chars puts spaces around it
    "space",  # BertPreTokenizer splits at it and drops it (White_Space)
    "punctuation",  # BertPreTokenizer makes it a word of its own
    "letter",  # \p{L} of ByteLevel
    "number",  # \p{N} of ByteLevel
    "gap",  # \s of ByteLevel
    "word",  # \w beside an added token
)


def changed() -> tuple[dict[str, str], dict[str, str]]:
    """The characters that NFD changes (Hangul is left to arithmetic) and those that lowercasing does, with what becomes
    of them."""
    nfd, lower = normalizers.NFD().normalize_str, normalizers.Lowercase().normalize_str
    return (
        {c: nfd(c) for c in CHARACTERS if ord(c) not in HANGUL and nfd(c) != c},
        {c: lower(c) for c in CHARACTERS if lower(c) != c},
    )


def main() -> int:
    """Write the header."""
    nfd, (decompositions, lowered) = normalizers.NFD().normalize_str, changed()
    parts = [
        f"// Made by unicode_tables.py from tokenizers {tokenizers.__version__}: do not edit.",
        "#pragma once\n",
        "#include <cstdint>\n",
        "namespace edgekd::tables {\n",
        "// A value holds from a character on to the next entry.",
        "struct Run {\n  char32_t from;\n  uint16_t value;\n};\n",
        "// A character becomes `count` characters of kPool from `start` on.",
        "struct Mapping {\n  char32_t from;\n  uint16_t start;\n  uint16_t count;\n};\n",
    ]
    parts += [f"constexpr uint16_t {constant(name)} = {1 << bit};" for bit, name in enumerate(FLAGS)]
    parts.append("")
    parts += runs("kFlags", flags_of(decompositions))
    parts += runs("kCombiningClass", combining_classes(nfd))
    pool: list[int] = []
    parts += _mappings("kDecomposition", decompositions, pool)
    parts += _mappings("kLowercase", lowered, pool)
    parts += [f"constexpr char32_t kPool[] = {{  // {len(pool)}", *_lines(f"{code:#x}" for code in pool), "};\n"]
    parts.append("}  // namespace edgekd::tables\n")
    OUT.write_text("\n".join(parts), encoding="utf-8")
    sys.stdout.write(f"{OUT.name}: {OUT.stat().st_size} bytes\n")
    return 0


def flags_of(decompositions: dict[str, str]) -> list[int]:
    """The bits of every code point, as the library answers."""

    def bert(**options: bool) -> Callable[[str], str]:
        off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
        return normalizers.BertNormalizer(**{**off, **options}).normalize_str

    clean, strip, chinese = bert(clean_text=True), bert(strip_accents=True), bert(handle_chinese_chars=True)
    words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    chunks = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    is_word = word_test()
    flags = [0] * 0x110000
    for c in CHARACTERS:
        pieces = len(words(f"a{c}a"))
        letter, number, other = (len(chunks(f"{before}{c}")) == 1 for before in "a1!")
        values = {
            "cleaned": clean(c) == "",
            "blank": clean(c) == " ",
            # Of a character that is decomposed only its parts are ever asked.
            "mark": c not in decompositions and strip(c) == "",
            "chinese": chinese(c) != c,
            "space": pieces == 2,
            "punctuation": pieces == 3,
            "letter": letter,
            "number": number,
            "gap": not (letter or number or other),
            "word": is_word(c),
        }
        flags[ord(c)] = sum(values[name] << bit for bit, name in enumerate(FLAGS))
    return flags


def word_test() -> Callable[[str], bool]:
    """Whether a character beside an added token with ``single_word`` keeps that from being one."""
    asked = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    asked.add_tokens([AddedToken("xyz", single_word=True, normalized=False)])
    return lambda c: 1 not in asked.encode(f"xyz{c}").ids


def combining_classes(nfd: Callable[[str], str]) -> list[int]:
    """The class of every code point, 0 where the library does not move it."""

    def moves(first: str, second: str) -> bool:
        return nfd(first + second) == second + first != first + second

    found = [0] * 0x110000
    lowest, highest = "\u0334", "\u0345"  # of the classes 1 and 240
    ordered = [
        c for c in CHARACTERS if nfd(c) == c and (moves(highest, c) or moves(c, lowest) or c in (lowest, highest))
    ]
    examples = {unicodedata.combining(c): c for c in ordered if unicodedata.combining(c)}
    for c in ordered:
        same = [value for value, other in examples.items() if not moves(c, other) and not moves(other, c)]
        if len(same) != 1:
            raise ValueError(f"no one class for U+{ord(c):04X}: {same}")
        found[ord(c)] = same[0]
    return found


def constant(name: str) -> str:
    """A bit's name in C++."""
    return "k" + name.capitalize()


def runs(name: str, values: list[int]) -> Iterator[str]:
    """A table of what holds from a character on."""
    starts = [code for code in range(len(values)) if code == 0 or values[code] != values[code - 1]]
    yield f"constexpr Run {name}[] = {{  // {len(starts)}"
    yield from _lines(f"{{{code:#x}, {values[code]}}}" for code in starts)
    yield "};\n"


def _mappings(name: str, table: dict[str, str], pool: list[int]) -> Iterator[str]:
    entries = []
    for c, text in sorted(table.items()):
        entries.append(f"{{{ord(c):#x}, {len(pool)}, {len(text)}}}")
        pool.extend(map(ord, text))
    yield f"constexpr Mapping {name}[] = {{  // {len(entries)}"
    yield from _lines(entries)
    yield "};\n"


def _lines(entries: Iterable[str]) -> Iterator[str]:
    line = " "
    for entry in entries:
        if len(line) + len(entry) > 117:
            yield line
            line = " "
        line += f" {entry},"
    yield line


if __name__ == "__main__":
    sys.exit(main())
