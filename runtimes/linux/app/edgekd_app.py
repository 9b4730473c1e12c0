"""An app's side of a bundle, in Python: text in, a typed answer out.

    from edgekd_app import EdgeClassifier
    classifier = EdgeClassifier.load("bundle")
    classifier.classify("my card has not arrived", top_k=3)     # [(label, score), ...]

One class per task: ``EdgeClassifier.classify``, ``EdgeTagger.tag``, ``EdgeEmbedder.embed``; each has ``self_test``,
which runs the golden texts of the bundle and says whether this machine gives the ids and the logits that were
verified. It needs ``tokenizers``, ``numpy`` and the model's runtime; it imports nothing from edgekd, and opens the
model with the same settings as the benchmark (``edgekd_runner.py`` beside it). A text longer than the model takes is
cut on its right. Instances are not safe for several threads at once: give each its own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import edgekd_runner as engine
import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import BertPreTokenizer

SCHEMA = "edgekd/app/1"


class BundleError(Exception):
    """The bundle is not one, is for another task, or its runtime is missing; the message says what to do."""


class _Model:
    """A bundle, opened: what its tokenizer makes of a text, and what its model says."""

    TASK = ""

    def __init__(self, folder: Path, threads: int) -> None:
        try:
            self.settings = json.loads((folder / "app.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder}: no bundle ({error})") from None
        if self.settings.get("schema") != SCHEMA:
            raise BundleError(f"{folder}: app.json is not of {SCHEMA}: make the bundle with this library's edgekd")
        if self.settings["task"] != self.TASK:
            raise BundleError(f"{folder}: is for {self.settings['task']}, not {self.TASK}")
        self._folder = folder
        self.labels: list[str] = self.settings["labels"]
        self._tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.settings["max_length"])
        job = {
            "schema": engine.SCHEMA,
            "phase": "outputs",
            "runtime": self.settings["target"],
            "model": str(folder / "model" / self.settings["file"]),
            "threads": threads,
            "signature": self.settings["inputs"],
            "fixed_lengths": self.settings["lengths"],
            "pad_id": self.settings["pad_id"],
            "rows": [self._row(self._tokenizer.encode(""))],
        }
        try:
            self._job = engine.check(job)
            self._model = engine.RUNTIMES[self._job["runtime"]](self._job)()
        except engine.RunnerError as error:
            raise BundleError(f"{folder}: {error}") from None

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1) -> Any:
        """Open a bundle; raises BundleError."""
        return cls(Path(folder), threads)

    def _row(self, encoding: Any) -> dict[str, Any]:
        columns = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        columns["token_type_ids"] = encoding.type_ids
        return {one["name"]: list(columns[one["name"]]) for one in self.settings["inputs"]}

    def _logits(self, row: dict[str, Any]) -> np.ndarray:
        return np.asarray(engine.answers(self._job, self._model, [row])[0], np.float64)

    def _answer(self, text: str) -> Any:
        raise NotImplementedError

    def self_test(self) -> dict[str, Any]:
        """The golden texts on this machine: ``passed``, ``texts``, ``largest_difference``, ``bound``, ``milliseconds``
        (the median), ``runtime``, and ``wrong``, which lists token ids that differ and logits beyond the bound.
        """
        golden = json.loads((self._folder / "model" / "golden.json").read_text(encoding="utf-8"))
        wrong, largest, times = [], 0.0, []
        names = [one["name"] for one in self.settings["inputs"]]
        for number, (text, expected) in enumerate(zip(golden["texts"], golden["outputs"]["logits"], strict=True)):
            row = self._row(self._tokenizer.encode(text))
            if any(row[name] != golden["inputs"][name][number] for name in names):
                wrong.append(f"text {number + 1}: token ids differ")
                continue
            began = time.perf_counter()
            found = self._logits(row)
            times.append(1000 * (time.perf_counter() - began))
            difference = float(np.abs(found - np.asarray(expected)).max())
            largest = max(largest, difference)
            if difference > self.settings["bound"]:
                wrong.append(f"text {number + 1}: an output is off by {difference:.4g}")
            self._answer(text)
        return {
            "passed": not wrong,
            "texts": len(golden["texts"]),
            "largest_difference": largest,
            "bound": self.settings["bound"],
            "milliseconds": sorted(times)[len(times) // 2] if times else None,
            "runtime": self._model.observed,
            "wrong": wrong,
        }


class EdgeClassifier(_Model):
    """One label for a text."""

    TASK = "text-classification"

    def classify(self, text: str, top_k: int = 3) -> list[tuple[str, float]]:
        """The ``top_k`` labels with their probabilities, best first."""
        shares = _softmax(self._logits(self._row(self._tokenizer.encode(text))))
        return [(self.labels[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")[:top_k]]

    _answer = classify


class EdgeTagger(_Model):
    """Labelled spans of a text, from one BIO tag a word."""

    TASK = "token-classification"

    def tag(self, text: str) -> list[tuple[str, int, int, str, float]]:
        """``(label, start, end, text, score)`` in the order of the text; ``start`` and ``end`` count characters."""
        encoding = self._tokenizer.encode(text)
        logits_TC = self._logits(self._row(encoding))
        words = [span for _, span in BertPreTokenizer().pre_tokenize_str(text)]
        outside = self.labels.index("O") if "O" in self.labels else 0
        tags, scores = [], []
        for first in _first_tokens(encoding.offsets, words):
            # A word that was cut off has no logits: all classes are equally likely there.
            logits_C = logits_TC[first] if first is not None else np.zeros(len(self.labels))
            tags.append(self.labels[int(logits_C.argmax()) if logits_C.any() else outside])
            scores.append(float(_softmax(logits_C).max()))
        return [
            (label, words[a][0], words[b][1], text[words[a][0] : words[b][1]], float(np.mean(scores[a : b + 1])))
            for label, a, b in _spans(tags)
        ]

    _answer = tag


class EdgeEmbedder(_Model):
    """A vector for a text; texts that mean the same have a large cosine."""

    TASK = "sentence-similarity"

    def embed(self, text: str) -> list[float]:
        """The embedding, as the model gives it."""
        return [float(value) for value in self._logits(self._row(self._tokenizer.encode(text)))]

    _answer = embed


CLASSES = {one.TASK: one for one in (EdgeClassifier, EdgeTagger, EdgeEmbedder)}


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def _first_tokens(offsets: list[tuple[int, int]], words: list[tuple[int, int]]) -> list[int | None]:
    """The first token that overlaps each word; None where there is none. Both are in the order of the text."""
    tokens = [(index, start, end) for index, (start, end) in enumerate(offsets) if end > start]
    found: list[int | None] = []
    at = 0
    for start, end in words:
        while at < len(tokens) and tokens[at][2] <= start:
            at += 1
        found.append(tokens[at][0] if at < len(tokens) and tokens[at][1] < end else None)
    return found


def _spans(tags: list[str]) -> list[tuple[str, int, int]]:
    """Spans of BIO tags: one begins at B, and at an I that does not continue a span of its label."""
    found: list[tuple[str, int, int]] = []
    before: str | None = None
    for word, tag in enumerate(tags):
        kind, _, label = tag.partition("-")
        if kind == "I" and label == before:
            found[-1] = (label, found[-1][1], word)
        elif kind != "O":
            found.append((label, word, word))
        before = None if kind == "O" else label
    return found


def main() -> int:
    """``python edgekd_app.py BUNDLE ["text" ...]``: answers as JSON lines; without texts the self-test."""
    import sys

    folder, texts = Path(sys.argv[1]), sys.argv[2:]
    task = json.loads((folder / "app.json").read_text(encoding="utf-8"))["task"]
    model = CLASSES[task].load(folder)
    if not texts:
        report = model.self_test()
        sys.stdout.write(json.dumps(report) + "\n")
        return 0 if report["passed"] else 1
    for text in texts:
        sys.stdout.write(json.dumps(model._answer(text), ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
