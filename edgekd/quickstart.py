"""The main job on a machine that has nothing but Python: data and a teacher made on the spot, offline.

The text is the documentation inside the Python standard library (its docstrings, paragraph by paragraph);
the classes are the packages they come from. The teacher is a small BERT trained from scratch for a minute,
so its accuracy is modest; what the quickstart shows is the way from a teacher to proven artefacts.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgekd import artifact, pipeline, recipe
from edgekd.errors import Environment
from edgekd.recipe import Recipe

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
VERSION = 1
EPOCHS = 6
RECIPE = """
schema_version: 1
name: quickstart
task: text-classification
teacher: {{model: {folder}/teacher}}
data: {{train: {folder}/train.csv, test: {folder}/test.csv, max_length: 64}}
distill:
  student: {{layers: 2, hidden_size: 96, heads: 4, intermediate_size: 256}}
  epochs: 12
  learning_rate: 1.0e-3
  patience: 5
quantize: {{steps: 100, evaluate_every: 25, learning_rate: 1.0e-4}}
# This machine is not the device: a processor without int8 products runs int8 no faster. The report shows the times.
gate: {{max_accuracy_drop: 0.02, min_program_agreement: 0.98, min_teacher_ratio: 0.9, not_slower: false}}
bench: {{min_seconds: 1.0, warmup_seconds: 0.2, cold_loads: 2}}
report: {{title: "Quickstart: which standard-library package does this sentence document?"}}
"""


def prepare(folder: Path, overrides: list[str], listen: Callable[[Any], None]) -> Recipe:
    """Make ``folder/quickstart/`` (train.csv, test.csv, teacher/) unless it is made, and return its recipe."""
    path = folder / "quickstart"
    key = artifact.sha256_json({"version": VERSION, "python": sysconfig.get_python_version()})
    if not (path / artifact.MANIFEST).is_file() or artifact.load(path).key != key:
        listen(pipeline.Event("start", "quickstart"))
        out = artifact.partial_of(path)
        out.mkdir(parents=True, exist_ok=True)
        rows = list(sentences())
        split = {"train": [r for r in rows if r[2] >= 32], "test": [r for r in rows if r[2] < 32]}
        for name, part in split.items():
            with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(["text", "label"])
                writer.writerows(row[:2] for row in part)
        train_teacher(
            [row[:2] for row in split["train"]],
            PACKAGES,
            out / "teacher",
            lambda done, total, unit: listen(pipeline.Event("progress", "quickstart", done, total, unit)),
        )
        counts = {name: len(part) for name, part in split.items()}
        artifact.seal(path, stage="quickstart", label="", key=key, facts={"rows": counts}, parents={}, tools={})
        listen(pipeline.Event("made", "quickstart"))
    text = RECIPE.format(folder=path)
    artifact.write_atomic(folder / "quickstart.yaml", text)
    return recipe.parse(text, where="quickstart", overrides=overrides)


def sentences() -> Iterator[tuple[str, str, int]]:
    """``(paragraph, package, bucket)`` of the standard library's docstrings; each text once, in a fixed order.

    The bucket (0 to 255, from the whole docstring's hash) splits train and test, so that two paragraphs of one
    docstring never lie on both sides.
    """
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for package in PACKAGES:
        if not (root / package).is_dir():
            raise Environment(f"the standard library has no sources of '{package}'", where=str(root))
        for file in sorted((root / package).rglob("*.py")):
            for doc in _docstrings(file.read_bytes()):
                bucket = hashlib.sha256(doc.encode()).digest()[0]
                for paragraph in doc.split("\n\n")[:3]:
                    text = " ".join(paragraph.split())
                    if 20 <= len(text) <= 300 and text not in seen:
                        seen.add(text)
                        yield text, package, bucket


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc:
                yield doc


def train_teacher(
    rows: list[tuple[str, str]],
    labels: Sequence[str],
    out: Path,
    progress: artifact.Progress,
    *,
    layers: int = 4,
    hidden_size: int = 256,
    vocabulary: int = 4000,
    epochs: int = EPOCHS,
    learning_rate: float = 5e-4,
) -> None:
    """Train a WordPiece tokenizer and a small BERT classifier on ``(text, label)`` rows; saves a model folder."""
    import random

    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator([text for text, _ in rows], vocab_size=vocabulary, min_frequency=2, show_progress=False)
    out.mkdir(parents=True, exist_ok=True)
    words.save(str(out / "tokenizer.json"))
    BertTokenizerFast(tokenizer_file=str(out / "tokenizer.json"), model_max_length=64).save_pretrained(out)

    torch.manual_seed(0)
    order = random.Random(0)
    config = BertConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = BertForSequenceClassification(config).train()
    samples = [(words.encode(text).ids[:64], labels.index(label)) for text, label in rows]
    size, done = 32, 0
    total = epochs * -(-len(samples) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=total, pct_start=0.1)
    for _ in range(epochs):
        order.shuffle(samples)
        batches = [bucket[i : i + size] for bucket in _buckets(samples, 16 * size) for i in range(0, len(bucket), size)]
        order.shuffle(batches)
        for batch in batches:
            length = max(len(ids) for ids, _ in batch)
            ids_BS = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch])
            labels_B = torch.tensor([label for _, label in batch])
            loss = model(input_ids=ids_BS, attention_mask=(ids_BS != 0).long(), labels=labels_B).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            progress(done, total, "steps")
    model.eval().save_pretrained(out)


def _buckets(samples: list[tuple[list[int], int]], size: int) -> Iterator[list[tuple[list[int], int]]]:
    """Pieces of ``size`` samples, each sorted by length, so that little is spent on padding."""
    for start in range(0, len(samples), size):
        yield sorted(samples[start : start + size], key=lambda sample: len(sample[0]))
