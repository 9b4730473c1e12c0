"""The C++ tokenizer core gives what Python's ``tokenizers`` gives: the same ids, offsets, masks and types."""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import itertools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from _material import ROOT, SHARED
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.implementations import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer

SOURCES = ROOT / "runtimes" / "linux" / "text"
COMPILERS = {"g++": "g++", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu"}
QEMU = os.environ.get("EDGEKD_QEMU") or shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
NOT_TEXT = ("Cn", "Co", "Cs")

HARD = [
    "",
    " ",
    "   \t\r\n  ",
    "Hello, world!",
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m",
    unicodedata.normalize("NFD", "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m Vi\u1ec7t Nam"),
    "\u1ec7 \u0065\u0323\u0302 \u0065\u0302\u0323 \u0344 a\u0315\u0344",  # marks that have to be put in order
    "\u0301 a \u0301b",  # a mark with nothing before it
    "STRASSE Stra\u00dfe \u1e9e \u0130stanbul I\u0307 \u0131 \u03a3\u038f\u03a6\u039f\u03a3 \u01c5 \ufb01",
    "\u4e2d\u6587\u5206\u8bcd abc\u4e2d \U00020000\u3042\u30ab\u30bf\u30ac \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1e9\U0001f1ea \u2764\ufe0f 1\ufe0f\u20e3",
    "a\x00b\x01c\x7fd\x80e\x85f\xadg\u200bh\u200ei\u2028j\u2029k\ufeffl\ufffdm\u00a0n\u3000o\u2003p\u1680q\u180er",
    "x" * 99 + " " + "x" * 100 + " " + "x" * 101 + " " + "x" * 5000,
    "\u00e9" * 60 + " " + "e\u0301" * 60,
    "[CLS] a [SEP]b[MASK]c [UNK][PAD] [mask] [ MASK ] [[MASK]] [MASK",
    "<s> a </s>b<mask>c <unk><pad> <mask > <<mask>>  <mask>  x",
    "Don't you'll WE'RE it's o'clock 'tis rock'n'roll \u2019s he'd I'm they've",
    "12,345.67 \u0663\u0664 \u2167 \u00bd x\u00b2 1st 2nd mp3",
    "a-b_c d.e/f\\g (h) [i] {j} <k> $l ^m `n ~o |p =q +r",
    "\ud7ff\ue000\U0010ffff\U0001ffff\ufffe\uffff",  # around the surrogates, and characters that are none
    "tab\there  two   three    four \n\n newline \n",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627",
    "\u2581under\u2581score \u2581\u2581 x",
    "\r\n \n\r x\u0301 x\u0323\u0301 \u2122\u0301 \u2122\u200d\u2122\u0301 \u00a9\u200d\u2122\u0301",
    "e\u0301\u0323 \ufb01\u0301 \r\u0301",
    "\u0958\u0301 \u0915\u094d\u0958\u0301 \u0600x\u0301 \u0600\r",
    "\u1112\u0301 \u1112\u1161\u0301 \U0001f1e9\u0301 \x01a\xad\xad",
    "\uff21\uff22\uff23 \uff11\uff12 \u3231 \u33a5 \u2460 \ufdfa",
]  # fmt: skip

WORDS = (
    "the quick brown fox jumps over lazy dog caf\u00e9 na\u00efve un aff able token ##ization s t re don ll 1 2 3 12 "
    "345 strasse stra\u00dfe istanbul \u4e2d \u6587 ##er ##s ##ing ##x x ##xx e ##e \u00e9 ##\u00e9 mask "
    "special new york"
).split()


@dataclass(frozen=True)
class Row:
    """What is asked of both."""

    text: str
    pair: str | None = None
    max_length: int | None = None
    truncation: str = "longest_first"
    bare: bool | None = None  # the text's own tokens only

    def asked(self) -> str:
        """As the C++ program reads it."""
        given = vars(self)
        return json.dumps({name: value for name, value in given.items() if value is not None}) + "\n"


class Both:
    """One tokenizer, as C++ and as Python runs it."""

    def __init__(self, program: Path, tokenizer: Tokenizer, folder: Path, *emulator: str) -> None:
        tokenizer.no_padding()
        self.python = tokenizer
        self.file = folder / "tokenizer.json"
        tokenizer.save(str(self.file))
        self.process = subprocess.Popen(
            [*emulator, program, self.file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def close(self) -> None:
        """End the program."""
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def cpp_answers(self, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
        """All lines out, while the answers come in."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin and stdout

        def ask() -> None:
            stdin.writelines(row.asked() for row in rows)
            stdin.flush()

        asking = threading.Thread(target=ask)
        asking.start()
        for _ in rows:
            yield json.loads(stdout.readline())
        asking.join()

    def python_answer(self, row: Row) -> dict[str, Any]:
        """In the same form."""
        if row.max_length is None:
            self.python.no_truncation()
        else:
            self.python.enable_truncation(row.max_length, strategy=row.truncation)
        found = self.python.encode(row.text, row.pair, add_special_tokens=not row.bare)
        return {
            "ids": found.ids,
            "offsets": [list(span) for span in found.offsets],
            "special_mask": found.special_tokens_mask,
            "type_ids": found.type_ids,
            "texts": [-1 if text is None else text for text in found.sequence_ids],
        }

    def mismatches(self, rows: Iterable[Row]) -> tuple[int, list[str]]:
        """How many rows were compared, and what differs."""
        asked = list(rows)
        different = []
        for row, cpp in zip(asked, self.cpp_answers(asked), strict=True):
            if cpp != (python := self.python_answer(row)):
                different.append(f"{row!a}\n  C++    {cpp}\n  Python {python}")
        return len(asked), different

    def check(self, rows: Iterable[Row]) -> int:
        """No row differs; how many there were."""
        count, different = self.mismatches(rows)
        assert not different, f"{len(different)} of {count} differ:\n" + "\n".join(different[:3])
        return count


# --- the program and the tokenizers ---


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `tokenize`, compiled here."""
    return compiled("g++", tmp_path_factory.mktemp("tokenize"))


def compiled(compiler: str, folder: Path, *flags: str) -> Path:
    """From the core's sources; skips where the compiler is missing."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler {compiler}: apt-get install {COMPILERS[compiler]}")
    includes = [] if _has_json(compiler) else [f"-isystem{path}" for path in _json_headers()]
    out = folder / "tokenize"
    sources = sorted(str(path) for path in SOURCES.glob("*.cc"))
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", *(flags or ["-O1"]), *includes, *sources]
    done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return out


def _has_json(compiler: str) -> bool:
    asked = [compiler, "-E", "-x", "c++", "-", "-o", "/dev/null"]
    done = subprocess.run(asked, input="#include <nlohmann/json.hpp>\n", capture_output=True, text=True, timeout=100)
    return done.returncode == 0


def _json_headers() -> list[Path]:
    """As the runners' build has them; skips where they cannot be had."""
    path = ROOT / "runtimes" / "linux" / "packages.py"
    spec = importlib.util.spec_from_file_location("runtimes_packages", path)
    assert spec and spec.loader
    packages = importlib.util.module_from_spec(spec)
    sys.modules["runtimes_packages"] = packages
    spec.loader.exec_module(packages)
    try:
        headers: list[Path] = packages.fetch(packages.JSON, "any", path.parent / "build" / "packages").headers
    except packages.BuildError as error:
        pytest.skip(f"no nlohmann/json.hpp: {error}")
    return headers


def wordpiece(**options: Any) -> Tokenizer:
    """A small vocabulary: words, and every character of the scripts as a token and as a word's part."""
    lengths = options.pop("max_input_chars_per_word", 100)
    single = [
        c
        for c in CHARACTERS[:0xD800]
        if unicodedata.category(c) not in NOT_TEXT and not 0x3400 <= ord(c) < 0xD800 and not c.isspace()
    ]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *single, *(f"##{c}" for c in single)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=lengths))
    made.normalizer = normalizers.BertNormalizer(**options)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def with_added_tokens() -> Tokenizer:
    """Every flag of an added token."""
    made = wordpiece()
    for number, (single, left, right, normal) in enumerate(itertools.product((False, True), repeat=4)):
        content = f"<T{number:x}\u00c9>"
        made.add_tokens([AddedToken(content, single_word=single, lstrip=left, rstrip=right, normalized=normal)])
    made.add_tokens([AddedToken("New York", normalized=True), AddedToken("new", normalized=True, single_word=True)])
    made.add_tokens([AddedToken("fox", normalized=False, single_word=True), AddedToken("foxes", normalized=False)])
    made.add_special_tokens([AddedToken("[X]", lstrip=True, rstrip=True), AddedToken("[X]!", lstrip=True)])
    return made


def template() -> Tokenizer:
    """A post-processor that has the second text first and specials of several ids."""
    made = wordpiece(lowercase=False)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A:3 [SEP] [SEP]:1",
        pair="[CLS]:2 $B:1 [SEP] $A:0 [MASK]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)],
    )
    return made


def plain() -> Tokenizer:
    """Neither a normalizer nor a post-processor."""
    made = wordpiece(max_input_chars_per_word=7)
    made.normalizer = None
    made.post_processor = None
    return made


def corpus() -> list[str]:
    """What tokenizers are trained on: real text where it is here."""
    path = SHARED / "data" / "wiki_sents" / "sentences.txt"
    real = path.read_text(encoding="utf-8").splitlines()[5000:7000] if path.is_file() else []
    return [*HARD, *real, *(" ".join(random.Random(seed).choices(WORDS, k=12)) for seed in range(200))]


def bpe(*, ignore_merges: bool = False, **options: Any) -> Tokenizer:
    """Trained here; every byte is in its alphabet."""
    trained = ByteLevelBPETokenizer(**options)
    trained.train_from_iterator(corpus(), vocab_size=1500, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made = Tokenizer.from_str(trained.to_str())
    if ignore_merges:
        made.model.ignore_merges = True
    return made


def roberta() -> Tokenizer:
    """As RoBERTa has it: the mask takes the space before it along."""
    made = bpe(add_prefix_space=True)
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True
    )
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return made


def unigram(*, byte_fallback: bool = False, **options: Any) -> Tokenizer:
    """Trained here, with blanks folded; what is not in the training text is unknown, or its bytes."""
    trained = SentencePieceUnigramTokenizer()
    trained.train_from_iterator(
        corpus(), vocab_size=600, special_tokens=["<s>", "<unk>", "</s>", "<mask>"], unk_token="<unk>"
    )
    file = json.loads(trained.to_str())
    if byte_fallback:
        file["model"]["vocab"] += [[f"<0x{byte:02X}>", -50.0] for byte in range(256)]
        file["model"]["byte_fallback"] = True
    made = Tokenizer.from_str(json.dumps(file))
    made.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace("e.", "E..")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(**options)
    return made


def charsmap() -> bytes:
    """A small table with all that is odd about them: beginnings of others, what becomes nothing, what becomes more."""
    sys.path.insert(0, str(SOURCES))
    import grapheme_tables as tables

    table = {
        "\u00e9": "e",
        "e\u0301": "e",
        "\r": " ",
        "\x01": "",
        "\u00ad": "",
        "\u200d": "",
        "\u2122": "TM",
        "\ufb01": "fi",
    }
    table |= {
        "\u0323\u0301": "^",
        "\u0323": ".",
        "x": "xyz",
        "qu": "k",
        "\u0958": "\u0915\u093c",
        "\u3000": " ",
        "\u1112": "h",
    }
    table |= {"\u00a9": "(c)", "\U0001f600": ":)", "\u0600": "#", "\t": " ", "\n": " ", "\ufdfa": "\u0635\u0644 \u0639"}
    found: bytes = tables.charsmap({key.encode(): text for key, text in table.items()})
    return found


def precompiled() -> Tokenizer:
    """As XLM-RoBERTa and T5 have it, with a table made here."""
    made = unigram()
    parts = [normalizers.Strip(left=False, right=True), normalizers.Precompiled(charsmap())]
    made.normalizer = normalizers.Sequence([*parts, normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.add_tokens([AddedToken("x caf\u00e9", normalized=True)])
    return made


def sentencepiece() -> Tokenizer:
    """SentencePiece's own table nmt_nfkc, which XLM-RoBERTa, T5 and most others have, out of a model trained here."""
    trainer = pytest.importorskip("sentencepiece")
    model = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    stream = io.BytesIO()
    lines = [line for line in corpus() if line.strip() and len(line) < 2000 and "\0" not in line]
    options = {"vocab_size": 900, "normalization_rule_name": "nmt_nfkc", "hard_vocab_limit": False, "minloglevel": 2}
    trainer.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=stream, **options)
    model.ParseFromString(stream.getvalue())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    table = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    made.normalizer = normalizers.Sequence([table, normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def minilm() -> Tokenizer:
    """A real one."""
    path = SHARED / "teachers" / "banking77-minilm-l6" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no {path} (set EDGEKD_SHARED)")
    return Tokenizer.from_file(str(path))


MADE: dict[str, Callable[[], Tokenizer]] = {
    "bert": wordpiece,
    "bert-cased": lambda: wordpiece(lowercase=False),
    "bert-strip": lambda: wordpiece(lowercase=False, strip_accents=True),
    "bert-accents": lambda: wordpiece(lowercase=True, strip_accents=False),
    "bert-raw": lambda: wordpiece(clean_text=False, handle_chinese_chars=False),
    "bert-added": with_added_tokens,
    "template": template,
    "plain": plain,
}
MADE |= {
    "bpe": bpe,
    "bpe-prefix": lambda: bpe(add_prefix_space=True),
    "bpe-untrimmed": lambda: bpe(add_prefix_space=True, trim_offsets=False),
    "bpe-ignore-merges": lambda: bpe(ignore_merges=True),
    "bpe-trimmed": lambda: bpe(trim_offsets=True),
    "roberta": roberta,
    "unigram": unigram,
    "unigram-first": lambda: unigram(prepend_scheme="first"),
    "unigram-whole": lambda: unigram(split=False),
    "unigram-bytes": lambda: unigram(byte_fallback=True),
}
# What this core alone runs; the others share the tables above.
OWN: dict[str, Callable[[], Tokenizer]] = {"precompiled": precompiled, "sentencepiece": sentencepiece}
REAL: dict[str, Callable[[], Tokenizer]] = {"minilm": minilm}


QUICK = {"bert-added", "roberta", "unigram", "minilm"}  # one of each kind; the others in `make test-all`


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in (*MADE, *OWN, *REAL)],
)
def both(request: pytest.FixtureRequest, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Each tokenizer in turn."""
    made = {**MADE, **OWN, **REAL}[request.param]()
    one = Both(program, made, tmp_path_factory.mktemp(request.param))
    yield one
    one.close()


# --- what is compared ---

EXTRA = [
    f"{before}<T{number:x}\u00c9>{after}"
    for number in range(16)
    for before in ("", "a", "a ", "a  ", "!")
    for after in ("", "b", " b", "  b", "<t3e>", " <T6\u00c9> ")
] + [
    "I live in NEW YORK, new york, renew yorker; news new NEW! foxes fox fox, foxy \u00e9fox fox\u0301",
    "a [X]  [X]! [X] b[X]![X]",
    " [X] [MASK] [X]![MASK] ",
    "<T1\u00c9> <T1E\u0301> <t1e>",
]


def test_hard_texts(both: Both) -> None:
    texts = HARD + EXTRA
    both.check(Row(text, bare=bare) for text in texts for bare in (None, True))
    both.check(Row(text + " " + other) for text, other in itertools.permutations(HARD, 2))


def cut(row: Row) -> Row:
    """For Python, which makes all that it cuts off of a pair: every rest of the one with every rest of the other.

    Of two texts with 15,900 tokens each and room for six these are 28 million encodings, and it does not end.
    """
    return row if row.pair is None else replace(row, text=row.text[:250], pair=row.pair[:250])


def test_pairs_and_lengths(both: Both) -> None:
    chance = random.Random(0)
    rows = []
    for _ in range(1500):
        text, pair = chance.choice(HARD), chance.choice([None, *HARD])
        size = chance.choice([None, *range(6, 24), 64])
        rows.append(Row(text, pair) if size is None else cut(Row(text, pair, size)))
    both.check(rows)


def test_every_character(both: Both) -> None:
    """In a word, after a blank, and among marks; of the planes that hold next to nothing, a sample."""
    check_characters(
        both, [c for c in CHARACTERS if ord(c) < 0x20000 or 0xE0000 <= ord(c) < 0xE0200 or ord(c) % 61 == 0]
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_character_of_all_planes(both: Both) -> None:
    check_characters(both, CHARACTERS, every=1)


def check_characters(both: Both, characters: list[str], every: int = 7) -> None:
    """48 characters to a text; of the rarer forms each so many'th text."""
    for form, step in (
        ("a{}b", 1),
        (" {}", every),
        ("{}\u0323\u0301", every),
        ("\u0345{}\u0334", every),
        ("1{}", every),
    ):
        both.check(
            Row(" ".join(form.format(c) for c in characters[start : start + 48]))
            for start in range(0, len(characters), 48 * step)
        )


SNIPPETS = [
    *HARD[:12],
    "[MASK]",
    "<mask>",
    "<T3\u00c9>",
    "[X]",
    " ",
    "  ",
    "'s",
    "'ll",
    "\u0301",
    "\u0323",
    "\u4e2d",
    "\n",
    "12",
    "\u200d",
    "\u2122",
    "\r\n",
    "\u00ad",
    "qu",
    "\u0915\u094d",
    "\u0958",
    "\u0600",
    "\u1112\u1161",
]
TEXTS = st.lists(st.text(max_size=12) | st.sampled_from(SNIPPETS), max_size=6).map("".join)
ROWS = st.builds(Row, TEXTS, st.none() | TEXTS, st.none() | st.integers(5, 40))
LAX = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=500, deadline=None, suppress_health_check=LAX, database=None, derandomize=True)
@given(row=ROWS)
def test_any_text(both: Both, row: Row) -> None:
    both.check([row])


@functools.cache
def many_rows(count: int) -> Sequence[Row]:
    """So many texts of Hypothesis's, made once for all tokenizers, alone and in pairs, cut and whole."""
    texts: list[str] = []

    @settings(max_examples=count, deadline=None, suppress_health_check=LAX, database=None, phases=[Phase.generate])
    @given(text=TEXTS)
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    chance = random.Random(0)
    sizes = (None, *range(5, 41))
    return [Row(text, chance.choice([None, chance.choice(texts)]), chance.choice(sizes)) for text in texts]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_very_many_texts(both: Both) -> None:
    assert both.check(many_rows(100_000)) == 100_000


def real_lines() -> list[str]:
    """Of the data sets that are here."""
    lines: list[str] = []
    banking, wiki, pictures = (SHARED / "data" / name for name in ("banking77", "wiki_sents", "multi30k_en_de"))
    if (banking / "train.csv").is_file():
        with (banking / "train.csv").open(encoding="utf-8", newline="") as file:
            lines += [row["text"] for row in csv.DictReader(file)][:5000]
    if (wiki / "sentences.txt").is_file():
        lines += (wiki / "sentences.txt").read_text(encoding="utf-8").splitlines()[:5000]
    if (pictures / "validation.jsonl").is_file():
        rows = [json.loads(line) for line in (pictures / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
        lines += [row[language] for language in ("de", "en") for row in rows]
    if not lines:
        pytest.skip(f"no data sets under {SHARED / 'data'} (set EDGEKD_SHARED)")
    return lines


def test_real_lines(both: Both) -> None:
    lines = real_lines()
    assert len(lines) >= 10_000
    rows = [Row(line, max_length=64) for line in lines]
    rows += [Row(one, other, 32) for one, other in itertools.pairwise(lines[::10])]
    both.check(rows)


# --- on another processor, and under the eyes of the compiler ---


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """An emulator, and the program for it."""
    if platform.machine() == "aarch64":
        pytest.skip("this machine is aarch64 itself")
    if QEMU is None:
        pytest.skip("no qemu-aarch64 on the PATH and no EDGEKD_QEMU")
    program = compiled("aarch64-linux-gnu-g++", tmp_path_factory.mktemp("aarch64"), "-O1", "-static")
    return (QEMU, str(program))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(QUICK | {"precompiled"}))
def test_aarch64(aarch64: tuple[str, ...], name: str, tmp_path: Path) -> None:
    """Where char is unsigned, among other things."""
    emulator, program = aarch64
    one = Both(Path(program), {**MADE, **OWN, **REAL}[name](), tmp_path, emulator)
    one.check(Row(text, bare=bare) for text in HARD + EXTRA for bare in (None, True))
    one.check(cut(Row(text, pair, 24)) for text, pair in itertools.islice(itertools.permutations(HARD, 2), 0, None, 3))
    characters = [c for c in CHARACTERS if ord(c) < 0x20000][::5]
    one.check(
        Row(" ".join(f"a{c}b\u0323{c}" for c in characters[at : at + 48])) for at in range(0, len(characters), 48)
    )
    one.check(Row(line, max_length=64) for line in corpus()[-1000:])
    one.close()


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with the compiler's checks: it ends at the first access or sum that is not defined."""
    flags = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS")
    return compiled("g++", tmp_path_factory.mktemp("watched"), *flags)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(QUICK | {"precompiled"}))
def test_sanitizers_find_nothing(watched: Path, name: str, tmp_path: Path) -> None:
    one = Both(watched, {**MADE, **OWN, **REAL}[name](), tmp_path)
    one.check(Row(text, bare=bare) for text in HARD + EXTRA for bare in (None, True))
    one.check(cut(Row(text, pair, size)) for size in (5, 24) for text, pair in itertools.permutations(HARD, 2))
    check_characters(one, CHARACTERS[::3])
    one.check(many_rows(5000))
    one.close()  # fails where the program has complained, leaks included


# --- what is refused ---


def _run(program: Path, file: Path, rows: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, file], input="".join(rows), capture_output=True, text=True, timeout=60)


def test_only_second_is_cut(program: Path, tmp_path: Path) -> None:
    one = Both(program, wordpiece(), tmp_path)
    long, short = "the quick brown fox " * 5, "lazy dog"
    one.check([Row(short, long, size, "only_second") for size in range(6, 25)])
    one.check([Row(long, short, size, "only_first") for size in range(6, 25)])
    [answer] = one.cpp_answers([Row(long, short, 10, "only_second")])
    assert "too short" in answer["error"]
    one.close()


def test_bad_lines_are_answered_and_the_next_is_run(program: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    wordpiece().save(str(file))
    bad = ["{\n", '{"pair": "x"}\n', '{"text": "\\ud800"}\n', Row("a", max_length=1).asked(), Row("a").asked()]
    done = _run(program, file, bad)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert ["error" in answer for answer in answers] == [True, True, True, True, False]
    assert "max_length 1 does not hold the 2 special tokens" in answers[3]["error"]


def test_what_is_not_written_is_refused_by_name(program: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
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
        done = _run(program, file, [])
        assert done.returncode == 1 and told in done.stderr, (told, done.stderr)
    file.write_text("{}", encoding="utf-8")
    assert "no tokenizer.json" in _run(program, file, []).stderr
    assert "cannot be opened" in _run(program, tmp_path / "none.json", []).stderr
