"""The Kotlin tokenizer core gives what Python's ``tokenizers`` gives, on a JVM: what the C++ core is asked, again."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _android import ANDROID, KotlinAndPython, android_tools, compiled, core, java, tool
from _rows import TWENTY, pairs_and_lengths, seeded_rows
from hypothesis import given, settings
from test_cpp_tokenizer import (
    CHARACTERS,
    EXTRA,
    HARD,
    LAX,
    MADE,
    REAL,
    Row,
    check_characters,
    real_lines,
    wordpiece,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
KINDS = ("bert-added", "roberta", "unigram-bytes", "minilm")  # of each kind one, for what takes long


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The program ``Tokenize``, compiled here."""
    sources = [*core("OnnxEngine", "NativeEncoder"), ANDROID / "jvm"]
    return java([compiled(sources, [tool(android_tools.runtimes_jar)])], "dev.edgekd.TokenizeMain")


@pytest.fixture(scope="session", params=[*MADE, *REAL])
def both(
    request: pytest.FixtureRequest, command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KotlinAndPython]:
    """Each tokenizer in turn."""
    made = {**MADE, **REAL}[request.param]()
    one = KotlinAndPython(command, made, tmp_path_factory.mktemp(request.param))
    yield one
    one.close()


def test_hard_texts(both: KotlinAndPython) -> None:
    both.check(Row(text, bare=bare) for text in HARD + EXTRA for bare in (None, True))
    both.check(Row(text + " " + other) for text, other in itertools.permutations(HARD, 2))


def test_pairs_and_lengths(both: KotlinAndPython) -> None:
    both.check(pairs_and_lengths())


def test_every_character(both: KotlinAndPython, request: pytest.FixtureRequest) -> None:
    """Of all planes for one tokenizer of each kind, of the others a sample."""
    name = both.file.parent.name
    whole = any(name.startswith(kind) for kind in KINDS)
    check_characters(both, CHARACTERS if whole else CHARACTERS[::23], every=7)


def test_real_lines(both: KotlinAndPython) -> None:
    lines = real_lines()
    assert len(lines) >= 10_000
    rows = [Row(line, max_length=64) for line in lines]
    assert both.check(rows + [Row(one, other, 32) for one, other in itertools.pairwise(lines[::10])]) > 10_000


@pytest.mark.parametrize("name", KINDS)
def test_a_hundred_thousand_strings(name: str, command: list[str], tmp_path: Path) -> None:
    one = KotlinAndPython(command, {**MADE, **REAL}[name](), tmp_path)
    assert one.check(seeded_rows(name, 100_000)) == 100_000
    one.close()


@pytest.mark.parametrize("both", KINDS, indirect=True)
@settings(max_examples=1250, deadline=None, suppress_health_check=LAX, database=None)
@given(rows=TWENTY)
def test_very_many_texts(both: KotlinAndPython, rows: list[Row]) -> None:
    both.check(rows)


def test_half_of_a_pair_of_surrogates_is_replaced(command: list[str], tmp_path: Path) -> None:
    """Kotlin's strings may hold it, Python's tokenizer takes none: it counts as U+FFFD."""
    one = KotlinAndPython(command, wordpiece(), tmp_path)
    assert one.process.stdin and one.process.stdout

    def answer(text: str) -> Any:
        one.process.stdin.write(json.dumps({"text": text}) + "\n")  # type: ignore[union-attr]
        one.process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(one.process.stdout.readline())  # type: ignore[union-attr]

    assert answer("a \ud83d b") == answer("a \ufffd b")
    one.close()


def test_what_is_not_written_is_refused_by_name(command: list[str], tmp_path: Path) -> None:
    def run(lines: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(file)], input=lines, capture_output=True, text=True, timeout=60)

    file = tmp_path / "tokenizer.json"
    wordpiece().save(str(file))
    known = json.loads(file.read_text(encoding="utf-8"))
    bad = ["{\n", '{"pair": "x"}\n', Row("a", max_length=1).asked(), Row("a").asked()]
    answers = [json.loads(line) for line in run("".join(bad)).stdout.splitlines()]
    assert ["error" in answer for answer in answers] == [True, True, True, False]
    assert "max_length 1 does not hold the 2 special tokens" in answers[2]["error"]
    cases = [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}]}}, "normalizer Nmt"),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "pre-tokenizer UnicodeScripts"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, "model WordLevel"),
        ({"post_processor": {"type": "Unheard"}}, "post-processor Unheard"),
        ({"model": {**known["model"], "vocab": {"[UNK]": 1.5}}}, "not a whole number"),
        ({"model": {**known["model"], "unk_token": "no such"}}, "unk_token is not in the vocabulary"),
    ]
    for change, told in cases:
        file.write_text(json.dumps(known | change), encoding="utf-8")
        done = run()
        assert done.returncode == 1 and told in done.stderr, (told, done.stderr)
    for content in ("{}", '{"model": ', "[" * 1000):
        file.write_text(content, encoding="utf-8")
        assert "no tokenizer.json" in run().stderr
