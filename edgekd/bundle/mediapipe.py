"""MediaPipe's text tasks: one .tflite file that has tokenizer and labels in it, and needs no code of ours.

MediaPipe reads text its own way: it lower-cases ASCII letters, splits at spaces, punctuation and CJK characters, and
looks words up by WordPiece. So only an uncased BERT tokenizer is taken, and texts with accents or other alphabets in
capitals get other ids than from ``tokenizer.json``: the bundle says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd import registry
from edgekd.bundle._contract import App
from edgekd.errors import BadInput

TARGETS = frozenset({"litert"})
TASKS = frozenset({"sentence-similarity", "text-classification"})
RUNTIMES = {"litert": "mediapipe"}
TOKENIZERS = ("library",)


def place(app: App) -> None:
    """A layout of its own."""
    return None


def files(app: App) -> Mapping[str, bytes | Path]:
    """The model, and the golden texts that it was compared on."""
    target: Any = registry.load("targets", app.target)
    model = target.for_mediapipe(
        app.artifact, task=app.task, name=app.name, words=_words(app.artifact / "tokenizer.json"), labels=app.labels
    )
    return {"model.tflite": model, "golden.json": app.artifact / "golden.json"}


def _words(file: Path) -> list[str]:
    """The vocabulary by id; raises BadInput for a tokenizer that is not uncased BERT's."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {}
    wanted = {
        "a WordPiece model": "max_input_chars_per_word" in model,
        "lower case": normalizer.get("type") == "BertNormalizer" and normalizer.get("lowercase") is True,
        "BERT's splitting": (tokenizer.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer",
        "pieces that start with ##": model.get("continuing_subword_prefix") == "##",
        "the token [UNK] for unknown words": model.get("unk_token") == "[UNK]",
        "texts between [CLS] and [SEP]": _frame(tokenizer.get("post_processor") or {}) == ["[CLS]", "[SEP]"],
    }
    words = [word for word, _ in sorted(model["vocab"].items(), key=lambda one: one[1])] if all(wanted.values()) else []
    wanted["ids without gaps"] = sorted(model["vocab"].values()) == list(range(len(words))) if words else False
    for what, there in wanted.items():
        if not there:
            todo = "Distil a student with an uncased BERT tokenizer, or bundle it for another platform."
            raise BadInput(f"MediaPipe wants {what}, which this tokenizer has not", where=str(file), todo=todo)
    return words


def _frame(processor: Mapping[str, Any]) -> list[str]:
    """The special tokens around a text."""
    if processor.get("type") == "TemplateProcessing":
        return [one["SpecialToken"]["id"] for one in processor["single"] if "SpecialToken" in one]
    return [processor[name][0] for name in ("cls", "sep")] if processor.get("type") == "BertProcessing" else []


_START = """```python
from mediapipe.tasks.python import text

with text.{kind}.create_from_model_path("model.tflite") as model:
    print(model.{call})
```

The same file goes into MediaPipe's Tasks for Android, iOS and the web. MediaPipe reads ASCII text as the student was
trained to; accents, and capitals of other alphabets, it reads otherwise."""
USAGE = {
    "text-classification": _START.format(
        kind="TextClassifier", call='classify("a text").classifications[0].categories[:3]'
    ),
    "sentence-similarity": _START.format(kind="TextEmbedder", call='embed("a text").embeddings[0].embedding'),
}
