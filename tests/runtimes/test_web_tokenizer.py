"""The web library's tokenizer gives what Python's ``tokenizers`` gives: the same ids, offsets, masks and types.

Its parts are its own, its models those of ``@huggingface/tokenizers``. It is built and run here in Node; the bundle's
tests run it in a browser. Offsets count UTF-16 units.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _material import ROOT
from test_cpp_tokenizer import CHARACTERS, EXTRA, HARD, MADE, REAL, SNIPPETS, Row, real_lines
from tokenizers import Tokenizer

WEB = ROOT / "runtimes" / "web"
SCRIPT = Path(__file__).with_name("web_tokenize.mjs")
REFUSED = {"unigram-bytes": "byte_fallback"}
KINDS = {"bert-added", "roberta", "unigram", "minilm"}  # one of each
QUICK = {"bert-added", "roberta"}  # the others in `make test-all`


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer as one module, which Node runs."""
    bundler = WEB / "node_modules" / "esbuild" / "bin" / "esbuild"
    library = WEB / "node_modules" / "@huggingface" / "tokenizers"
    if not bundler.is_file() or not library.is_dir() or not shutil.which("node"):
        pytest.skip("no node, or no packages: run `npm ci` in runtimes/web")
    out = tmp_path_factory.mktemp("web") / "tokenizer.mjs"
    source = WEB / "app" / "src" / "text" / "tokenizer.ts"
    options = ["--bundle", "--format=esm", "--main-fields=module", "--log-level=warning", f"--outfile={out}"]
    done = subprocess.run([str(bundler), str(source), *options], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return out


class Both:
    """One tokenizer, as the web library and as Python runs it."""

    def __init__(self, module: Path, tokenizer: Tokenizer, folder: Path) -> None:
        tokenizer.no_padding()
        self.python, self.module, self.file = tokenizer, module, folder / "tokenizer.json"
        tokenizer.save(str(self.file))

    def run(self, rows: Iterable[Row]) -> subprocess.CompletedProcess[str]:
        """The script, once for all rows."""
        asked = "".join(row.asked() for row in rows)
        command = ["node", str(SCRIPT), str(self.module), str(self.file)]
        return subprocess.run(command, input=asked, capture_output=True, encoding="utf-8", timeout=1800)

    def expected(self, row: Row) -> dict[str, Any]:
        """Python's answer, its offsets in UTF-16 units."""
        if row.max_length is None:
            self.python.no_truncation()
        else:
            self.python.enable_truncation(row.max_length)
        found = self.python.encode(row.text, row.pair)
        units = [units_of(row.text), units_of(row.pair or "")]
        spans = zip(found.offsets, found.sequence_ids, strict=True)
        return {
            "ids": found.ids,
            "offsets": [[units[of or 0][start], units[of or 0][end]] for (start, end), of in spans],
            "special_mask": found.special_tokens_mask,
            "type_ids": found.type_ids,
        }

    def check(self, rows: Iterable[Row]) -> None:
        """No row differs."""
        waiting = iter(rows)
        while some := list(itertools.islice(waiting, 5000)):
            done = self.run(some)
            assert done.returncode == 0, done.stderr
            answers = [json.loads(line) for line in done.stdout.split("\n")]
            pairs = zip(some, answers, map(self.expected, some), strict=True)
            wrong = [f"{row!a}\n  web    {web}\n  Python {python}" for row, web, python in pairs if web != python]
            assert not wrong, f"{len(wrong)} of {len(some)} differ:\n" + "\n".join(wrong[:3])


def units_of(text: str) -> list[int]:
    """Where each character begins, in UTF-16 units, and where the text ends."""
    return [0, *itertools.accumulate(1 + (ord(one) > 0xFFFF) for one in text)]


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in (*MADE, *REAL)
        if name not in REFUSED
    ],
)
def both(request: pytest.FixtureRequest, module: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Each tokenizer in turn."""
    yield Both(module, {**MADE, **REAL}[request.param](), tmp_path_factory.mktemp(request.param))


def test_hard_texts_pairs_and_lengths(both: Both) -> None:
    chance = random.Random(0)
    rows = [Row(text) for text in HARD + EXTRA]
    rows += [Row(text + " " + other) for text, other in chance.sample([*itertools.permutations(HARD, 2)], 200)]
    for _ in range(400):
        text, pair = chance.choice(HARD), chance.choice([None, *HARD])
        rows.append(Row(text, pair, chance.choice([None, *range(6, 24), 64])))
    both.check(rows)


def test_real_lines(module: Path, tmp_path: Path) -> None:
    """Of the real tokenizer; the others have theirs in `make test-all`."""
    lines = real_lines()
    assert len(lines) >= 10_000
    rows = [Row(line, max_length=64) for line in lines]
    rows += [Row(one, other, 32) for one, other in itertools.pairwise(lines[::10])]
    Both(module, REAL["minilm"](), tmp_path).check(rows)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_real_lines_of_every_tokenizer(both: Both) -> None:
    both.check(Row(line) for line in real_lines())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_character(both: Both) -> None:
    """In a word, after a blank, and among marks: 48 to a text."""
    both.check(
        Row(" ".join(form.format(c) for c in CHARACTERS[start : start + 48]))
        for form in ("a{}b", " {}", "{}\u0323\u0301", "\u0345{}\u0334", "1{}")
        for start in range(0, len(CHARACTERS), 48)
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_very_many_texts(module: Path, tmp_path: Path) -> None:
    """100,000 texts and pairs of snippets and characters in any order."""
    chance = random.Random(1)

    def part() -> str:
        if chance.random() < 0.5:
            return chance.choice(SNIPPETS)
        return "".join(chr(chance.randrange(*chance.choice([(0x20, 0x250), (0, 0xD800)]))) for _ in range(8))

    def row() -> Row:
        texts = ["".join(part() for _ in range(chance.randrange(6))) for _ in "ab"]
        return Row(texts[0], chance.choice([None, texts[1]]), chance.choice([None, *range(5, 40)]))

    for name in sorted(KINDS):
        folder = tmp_path / name
        folder.mkdir()
        Both(module, {**MADE, **REAL}[name](), folder).check(row() for _ in range(25_000))


def test_what_is_not_run_is_refused_by_name(module: Path, tmp_path: Path) -> None:
    made = Both(module, MADE["bert"](), tmp_path)
    known = json.loads(made.file.read_text(encoding="utf-8"))
    cases = [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}}, "normalizer NFKC"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}}, "normalizer Replace of"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "pre-tokenizer Digits"),
        ({"post_processor": {"type": "Unheard"}}, "post-processor Unheard"),
        ({"model": {"type": "Unheard"}}, "tokenizer.json: "),
        ({"model": {**known["model"], "byte_fallback": True}}, "byte_fallback"),
    ]
    for change, told in cases:
        made.file.write_text(json.dumps(known | change), encoding="utf-8")
        done = made.run([])
        assert done.returncode == 1 and "BundleError" in done.stderr and told in done.stderr, (told, done.stderr)
    made.file.write_text(json.dumps(known), encoding="utf-8")
    done = made.run([Row("a", max_length=1)])
    assert done.returncode == 1 and "1 tokens do not hold the 2 special ones" in done.stderr
