"""The Kotlin tokenizer core gives what Python's ``tokenizers`` gives, on a JVM: what the C++ core is asked, again."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _android import ANDROID, KotlinAndPython, android_tools, compiled, core, java, tool
from test_cpp_tokenizer import (
    CHARACTERS,
    EXTRA,
    HARD,
    MADE,
    REAL,
    SNIPPETS,
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
    both.check(Row(text) for text in HARD + EXTRA)
    both.check(Row(text + " " + other) for text, other in itertools.permutations(HARD, 2))


def test_pairs_and_lengths(both: KotlinAndPython) -> None:
    chance = random.Random(0)
    lengths = [None, *range(6, 24), 64]
    both.check(Row(chance.choice(HARD), chance.choice([None, *HARD]), chance.choice(lengths)) for _ in range(1500))


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
    """Seeded: pieces of hard texts, words and characters of any plane, alone and as pairs, at any length."""
    chance = random.Random(name)
    one = KotlinAndPython(command, {**MADE, **REAL}[name](), tmp_path)

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

    def row() -> Row:
        pair = text() if chance.randrange(4) == 0 else None
        return Row(text(), pair, chance.choice([None, None, *range(5, 40)]))

    assert one.check(row() for _ in range(100_000)) == 100_000
    one.close()


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
