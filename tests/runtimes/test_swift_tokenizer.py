"""The Swift tokenizer core gives what Python's ``tokenizers`` gives: over the rows of the C++ core's tests."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _rows import TWENTY, InOneGo, pairs_and_lengths, seeded_rows
from _swift import HELPERS, PACKAGE, Swift, toolchain
from hypothesis import given, settings
from test_cpp_tokenizer import (
    CHARACTERS,
    EXTRA,
    HARD,
    LAX,
    MADE,
    QUICK,
    REAL,
    SOURCES,
    Both,
    Row,
    check_characters,
    real_lines,
    wordpiece,
)

CORE = PACKAGE / "Sources" / "EdgeApp"
slow = [pytest.mark.slow, pytest.mark.timeout(7200)]


def test_the_tables_are_those_of_the_cpp_core() -> None:
    """Both are read off one library; the C++ tests compare every character with it."""
    cpp = (SOURCES / "unicode_tables.hpp").read_text(encoding="utf-8")
    swift = (CORE / "Text" / "UnicodeTables.swift").read_text(encoding="utf-8")

    def numbers(text: str, name: str) -> list[int]:
        body = re.search(rf"\b{name}(?:\[\])? ?(?:: \[\w+\])? = [{{\[](.*?)\n *[}}\]]", text, re.DOTALL)
        assert body, name
        return [int(one, 0) for one in re.findall(r"\b0x[0-9a-f]+|\b\d+\b", re.sub("//.*", "", body[1]))]

    for theirs, ours, columns in (
        ("kFlags", "flags", ("From", "Value")),
        ("kCombiningClass", "combiningClass", ("From", "Value")),
        ("kDecomposition", "decomposition", ("From", "Start", "Count")),
        ("kLowercase", "lowercase", ("From", "Start", "Count")),
        ("kPool", "pool", ("",)),
    ):
        mine = [numbers(swift, ours + column) for column in columns]
        assert list(itertools.chain(*zip(*mine, strict=True))) == numbers(cpp, theirs), theirs
    for name, value in re.findall(r"constexpr uint16_t k(\w+) = (\d+);", cpp):
        assert f"static let {name.lower()}: UInt16 = {value}\n" in swift


# --- with a compiler ---


@pytest.fixture(scope="session")
def swift() -> Swift:
    return toolchain()


@pytest.fixture(scope="session")
def workshop(swift: Swift) -> Iterator[Path]:
    """A folder with the program `tokenize`, compiled there under Swift 6's rules, warnings being errors."""
    with swift.folder() as folder:
        sources = [*sorted((CORE / "Text").glob("*.swift")), CORE / "BundleError.swift", HELPERS / "main.swift"]
        for path in sources:
            (folder / path.name).write_bytes(path.read_bytes())
        flags = ["-O", "-swift-version", "6", "-warnings-as-errors", "-o", "tokenize"]
        done = swift.run(folder, "swiftc", *flags, *(path.name for path in sources))
        assert done.returncode == 0, done.stdout
        yield folder


class BothInSwift(InOneGo):
    """One tokenizer, as Swift and as Python runs it."""

    def __init__(self, swift: Swift, workshop: Path, tokenizer: Any, name: str) -> None:
        tokenizer.no_padding()
        self.python = tokenizer
        self.file = workshop / f"{name}.json"
        tokenizer.save(str(self.file))
        command = swift.command(workshop, workshop / "tokenize", self.file)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=slow) for name in sorted({*MADE, *REAL}, key=lambda name: name not in QUICK)],
)
def both(request: pytest.FixtureRequest, swift: Swift, workshop: Path) -> Iterator[Both]:
    """Each tokenizer in turn."""
    one = BothInSwift(swift, workshop, {**MADE, **REAL}[request.param](), request.param)
    yield one
    one.close()


def test_hard_texts(both: Both) -> None:
    both.check(Row(text, bare=bare) for text in HARD + EXTRA for bare in (None, True))
    both.check(Row(text, other, bare=True) for text, other in itertools.pairwise(HARD))
    both.check(Row(text + " " + other) for text, other in itertools.permutations(HARD, 2))


def test_pairs_and_lengths(both: Both) -> None:
    both.check(pairs_and_lengths())


def test_every_character(both: Both) -> None:
    check_characters(
        both, [c for c in CHARACTERS if ord(c) < 0x20000 or 0xE0000 <= ord(c) < 0xE0200 or ord(c) % 61 == 0]
    )


def test_real_lines(both: Both) -> None:
    lines = real_lines()
    assert len(lines) >= 10_000
    rows = [Row(line, max_length=64) for line in lines]
    rows += [Row(one, other, 32) for one, other in itertools.pairwise(lines[::10])]
    assert both.check(rows) > 10_000


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_strings(both: Both) -> None:
    """Seeded."""
    assert both.check(seeded_rows(both.file.stem, 100_000)) == 100_000


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("both", sorted(QUICK), indirect=True)
@settings(max_examples=1250, deadline=None, suppress_health_check=LAX, database=None)
@given(rows=TWENTY)
def test_very_many_texts(both: Both, rows: list[Row]) -> None:
    both.check(rows)


# --- what is refused ---


@pytest.mark.slow
def test_only_second_is_cut(swift: Swift, workshop: Path) -> None:
    one = BothInSwift(swift, workshop, wordpiece(), "cut")
    long, short = "the quick brown fox " * 5, "lazy dog"
    one.check([Row(short, long, size, "only_second") for size in range(6, 25)])
    one.check([Row(long, short, size, "only_first") for size in range(6, 25)])
    assert "too short" in one.cpp_answer(Row(long, short, 10, "only_second"))["error"]
    one.close()


def _run(swift: Swift, workshop: Path, file: Path, rows: list[str]) -> tuple[int, str]:
    command = swift.command(workshop, workshop / "tokenize", file)
    done = subprocess.run(command, input="".join(rows), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_bad_lines_are_answered_and_the_next_is_run(swift: Swift, workshop: Path) -> None:
    file = workshop / "bad.json"
    wordpiece().save(str(file))
    bad = ["{\n", '{"pair": "x"}\n', '{"text": "\\ud800"}\n', Row("a", max_length=1).asked(), Row("a").asked()]
    code, said = _run(swift, workshop, file, bad)
    answers = [json.loads(line) for line in said.splitlines()]
    assert code == 0
    assert ["error" in answer for answer in answers] == [True, True, True, True, False]
    assert "max_length 1 does not hold the 2 special tokens" in answers[3]["error"]


@pytest.mark.slow
def test_what_is_not_written_is_refused_by_name(swift: Swift, workshop: Path) -> None:
    file = workshop / "refused.json"
    wordpiece().save(str(file))
    known = json.loads(file.read_text(encoding="utf-8"))
    cases = [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}]}}, "normalizer Nmt"),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "pre-tokenizer UnicodeScripts"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, "model WordLevel"),
        ({"post_processor": {"type": "Unheard"}}, "post-processor Unheard"),
    ]
    for change, told in cases:
        file.write_text(json.dumps(known | change), encoding="utf-8")
        code, said = _run(swift, workshop, file, [])
        assert code == 1 and told in said, (told, said)
    file.write_text("{}", encoding="utf-8")
    assert "no tokenizer.json" in _run(swift, workshop, file, [])[1]
    file.write_text("[" * 100_000, encoding="utf-8")
    assert "too deep" in _run(swift, workshop, file, [])[1]
    assert "cannot be opened" in _run(swift, workshop, workshop / "none.json", [])[1]
