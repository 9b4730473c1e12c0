"""An app's side of a bundle, in Python: text in, a typed answer out.

    from edgekd_app import EdgeClassifier
    classifier = EdgeClassifier.load("bundle")
    classifier.classify("my card has not arrived", top_k=3)     # [(label, score), ...]

One class per task: ``EdgeClassifier.classify``, ``EdgeTagger.tag``, ``EdgeAnswerer.answer``,
``EdgeEmbedder.embed``; each has ``self_test``, which runs the golden texts of the bundle and says whether this machine
gives the ids and the logits that were verified. It needs ``tokenizers``, ``numpy`` and the model's runtime; it imports
nothing from edgekd, and opens the model with the same settings as the benchmark (``edgekd_runner.py`` beside it). A
text longer than the model takes is cut on its right; a longer context of a question is read in windows. Instances are
not safe for several threads at once: give each its own.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left, bisect_right
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
        job = {
            "schema": engine.SCHEMA,
            "phase": "outputs",
            "runtime": self.settings["target"],
            "model": str(folder / "model" / self.settings["file"]),
            "threads": threads,
            "signature": self.settings["inputs"],
            "fixed_lengths": self.settings["lengths"],
            "pad_id": self.settings["pad_id"],
            "rows": [self._row(self._encode(""))],
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

    def _encode(self, text: str, second: str | None = None) -> Any:
        """As the model reads it: with special tokens, cut to its length."""
        self._tokenizer.enable_truncation(self.settings["max_length"])
        return self._tokenizer.encode(text, second)

    def _golden(self, text: str) -> tuple[Any, Any]:
        """The encoding of a golden text, and what the app says to it."""
        return self._encode(text), self._answer(text)

    def _row(self, encoding: Any) -> dict[str, Any]:
        columns = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        columns["token_type_ids"] = encoding.type_ids
        return {one["name"]: list(columns[one["name"]]) for one in self.settings["inputs"]}

    def _logits(self, row: dict[str, Any]) -> np.ndarray:
        return np.asarray(engine.answers(self._job, self._model, [row])[0], np.float64)

    def _answer(self, *texts: str) -> Any:
        raise NotImplementedError

    def self_test(self) -> dict[str, Any]:
        """The golden texts on this machine: ``passed``, ``texts`` (how many), ``largest_difference``, ``bound``,
        ``milliseconds`` (the median), ``runtime``; ``wrong`` lists token ids that differ and outputs beyond the bound,
        ``rows`` has each text's ``ids_equal``, ``difference``, ``milliseconds`` and ``answer``.
        """
        golden = json.loads((self._folder / "model" / "golden.json").read_text(encoding="utf-8"))
        names, bound = [one["name"] for one in self.settings["inputs"]], self.settings["bound"]
        rows, wrong = [], []
        for number, (text, expected) in enumerate(zip(golden["texts"], golden["outputs"]["logits"], strict=True)):
            encoding, answer = self._golden(text)
            row, difference, began = self._row(encoding), None, time.perf_counter()
            equal = all(row[name] == golden["inputs"][name][number] for name in names)
            if equal:
                difference = float(np.abs(self._logits(row) - np.asarray(expected)).max())
            milliseconds = 1000 * (time.perf_counter() - began) if equal else None
            rows.append(
                {
                    "text": text,
                    "ids_equal": equal,
                    "difference": difference,
                    "milliseconds": milliseconds,
                    "answer": answer,
                }
            )
            if difference is None:
                wrong.append(f"text {number + 1}: token ids differ")
            elif not difference <= bound:
                wrong.append(f"text {number + 1}: an output is off by {difference:.4g}")
        timed = sorted(row["milliseconds"] for row in rows if row["ids_equal"])
        return {
            "passed": not wrong,
            "texts": len(rows),
            "largest_difference": max((row["difference"] for row in rows if row["ids_equal"]), default=0.0),
            "bound": bound,
            "milliseconds": timed[len(timed) // 2] if timed else None,
            "runtime": self._model.observed,
            "wrong": wrong,
            "rows": rows,
        }


class EdgeClassifier(_Model):
    """One label for a text."""

    TASK = "text-classification"

    def classify(self, text: str, top_k: int = 3) -> list[tuple[str, float]]:
        """The ``top_k`` labels with their probabilities, best first."""
        shares = _softmax(self._logits(self._row(self._encode(text))))
        return [(self.labels[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")[:top_k]]

    _answer = classify


class EdgeTagger(_Model):
    """Labelled spans of a text, from one BIO tag a word."""

    TASK = "token-classification"

    def tag(self, text: str) -> list[tuple[str, int, int, str, float]]:
        """``(label, start, end, text, score)`` in the order of the text; ``start`` and ``end`` count characters."""
        encoding = self._encode(text)
        logits_TC = self._logits(self._row(encoding))
        words = _words(text)
        outside = self.labels.index("O") if "O" in self.labels else 0
        tags, scores = [], []
        for first, _ in _tokens_of(encoding, words):
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
        return [float(value) for value in self._logits(self._row(self._encode(text)))]

    _answer = embed


class EdgeAnswerer(_Model):
    """The words of a text that answer a question about it."""

    TASK = "question-answering"

    def answer(self, question: str, context: str) -> tuple[str, int, int, float]:
        """``(text, start, end, score)``: the best span of the context, in characters, and its probability.

        ``("", 0, 0, score)`` says that the context has no answer, where the model was trained for that. A context
        longer than the model reads goes through it in windows that overlap; the span with the largest sum of start
        and end logit wins, of at most ``longest_answer`` words.
        """
        limit = self.settings["max_length"]
        question, size = self._cut(" ".join(question.split()), limit // 2)
        words = _words(context)
        room = limit - self._tokenizer.num_special_tokens_to_add(True) - size
        best, found, none = -np.inf, ("", 0, 0, 0.0), (np.inf, 0.0)
        for first, last in self._windows(context, words, room):
            begin, end = (words[first][0], words[last][1]) if words else (0, 0)
            window = context[begin:end]
            output_W2 = self._output(question, window)
            shares_W2 = np.stack([_softmax(output_W2[:, 0]), _softmax(output_W2[:, 1])], axis=1)
            none = min(none, (output_W2[0].sum(), float(shares_W2[0].prod())))
            for start in range(1, len(output_W2)):
                for stop in range(start, min(start + self.settings["longest_answer"], len(output_W2))):
                    score = output_W2[start, 0] + output_W2[stop, 1]
                    if score > best:
                        a, b = words[first + start - 1][0], words[first + stop - 1][1]
                        best, share = score, float(shares_W2[start, 0] * shares_W2[stop, 1])
                        found = (context[a:b], a, b, share)
        return ("", 0, 0, none[1]) if best == -np.inf or (self.settings["may_be_none"] and none[0] > best) else found

    def _answer(self, text: str, context: str | None = None) -> Any:
        """Of question and context, or of both as a golden text has them: a line, and the rest."""
        question, _, rest = text.partition("\n")
        return self.answer(question, rest if context is None else context)

    def _golden(self, text: str) -> tuple[Any, Any]:
        question, _, context = text.partition("\n")
        return self._encode(question, context), self._answer(text)

    def _output(self, question: str, window: str) -> np.ndarray:
        """[1 + words, 2]: start and end logits of [CLS], then of each word that was not cut off."""
        encoding = self._encode(question, window)
        logits_S2 = self._logits(self._row(encoding))
        places = _tokens_of(encoding, _words(window), sequence=1)
        while places and places[-1][0] is None:
            places.pop()
        units = [(0, 0)]
        for first, last in places:  # a word without tokens borrows those before it
            units.append(units[-1] if first is None or last is None else (first, last))
        return np.array([(logits_S2[first, 0], logits_S2[last, 1]) for first, last in units])

    def _whole(self, text: str) -> Any:
        self._tokenizer.no_truncation()
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _cut(self, text: str, limit: int) -> tuple[str, int]:
        """The text cut to so many tokens, and how many it has."""
        found = self._whole(text)
        return (text, len(found.ids)) if len(found.ids) <= limit else (text[: found.offsets[limit - 1][1]], limit)

    def _windows(self, context: str, words: list[tuple[int, int]], room: int) -> list[tuple[int, int]]:
        """First and last word of each window: as many words as ``room`` tokens hold, but one at least. The next
        begins at most ``max_length // overlap`` tokens before its end, and at most half of it.
        """
        begins, ends, token = [], [], 0  # of each word, in tokens; a word without tokens takes no room
        for first, last in _tokens_of(self._whole(context), words):
            begins.append(token if first is None else first)
            token = token if last is None else last + 1
            ends.append(token)
        shared = min(self.settings["max_length"] // self.settings["overlap"], max(room // 2, 0))
        found, first = [], 0
        while True:
            stop = max(bisect_right(ends, begins[first] + room) if words else 0, first + 1)
            found.append((first, stop - 1))
            if stop >= len(words):
                return found
            first = min(max(bisect_left(begins, ends[stop - 1] - shared), first + 1), stop)


CLASSES = {one.TASK: one for one in (EdgeClassifier, EdgeTagger, EdgeAnswerer, EdgeEmbedder)}


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def _words(text: str) -> list[tuple[int, int]]:
    """Characters of each word: split at white space and at punctuation, each mark a word, as BERT does."""
    return [span for _, span in BertPreTokenizer().pre_tokenize_str(text)]


def _tokens_of(encoding: Any, words: list[tuple[int, int]], sequence: int = 0) -> list[tuple[int | None, int | None]]:
    """First and last token that overlap each word; None where none does. Both are in the order of the text."""
    tokens = [
        (index, start, end)
        for index, ((start, end), of) in enumerate(zip(encoding.offsets, encoding.sequence_ids, strict=True))
        if of == sequence and end > start
    ]
    found: list[tuple[int | None, int | None]] = []
    at = 0
    for start, end in words:
        while at < len(tokens) and tokens[at][2] <= start:
            at += 1
        stop = at
        while stop < len(tokens) and tokens[stop][1] < end:
            stop += 1
        found.append((tokens[at][0], tokens[stop - 1][0]) if stop > at else (None, None))
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
    """``python edgekd_app.py BUNDLE ["text" ...]``: answers as JSON lines; without texts the self-test.

    A question stands with its context in one text, on the first line.
    """
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
