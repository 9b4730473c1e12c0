"""What quantization costs: a training step against plain fine-tuning, and calibration against bare forward passes.

    python benchmarks/quantize.py MODEL TEXTS.csv [--scheme w8a8] [--rounds 3] [--steps 6] [--samples 512]

MODEL is a transformers classifier in a folder; TEXTS.csv has a column ``text``. Three ways of training the same float
model on the same batches (16 texts of mixed length): ``plain`` (cross entropy, AdamW), ``qat`` (fake-quantized, towards
the float model's logits) and ``qad`` (its hidden states and a teacher's cached logits too). Calibration reads
``--samples`` texts, and so do the bare forwards, in the same batches. Interleaved, CPU seconds of one process; printed
are ratios to ``plain`` and to the bare forwards, the median over rounds.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgekd.quantize import qat, reference
from edgekd.quantize import scheme as schemes
from edgekd.recipe import Quantize
from edgekd.tasks import text_classification as task
from edgekd.teach import transformers

BATCH = 16
TEMPERATURE = 4.0


def main() -> None:
    """Measure, and print one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("texts", type=Path)
    arguments.add_argument("--scheme", default="w8a8")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=6)
    arguments.add_argument("--samples", type=int, default=512)
    asked = arguments.parse_args()
    torch.manual_seed(0)
    student = transformers.model_class(task.AUTO_TASK).from_pretrained(asked.model, dtype=torch.float32).eval()
    with asked.texts.open(encoding="utf-8") as file:
        rows = [{"text": row["text"], "label": 0} for row in csv.DictReader(file)][: asked.samples]
    encoded = task.encode(task.processor(asked.model), rows, 64)
    scheme = schemes.get(asked.scheme)

    def prepared() -> nn.Module:
        return reference.prepare(copy.deepcopy(student), scheme).requires_grad_(True)

    made = prepared()
    qat.calibrate(made, encoded[:64], 0.9999)
    ways = {"plain": plain(copy.deepcopy(student).train()), "qat": towards(made, student, knowledge=False)}
    ways["qad"] = towards(copy.deepcopy(made), student, knowledge=True)
    batches = [encoded[i * BATCH : (i + 1) * BATCH] for i in range(asked.steps)]
    training = interleaved({name: steps(way, batches) for name, way in ways.items()}, asked.rounds)
    calibration = interleaved(
        {"forward": forwards(student, encoded), "calibrate": lambda: qat.calibrate(prepared(), encoded, 0.9999)},
        asked.rounds,
    )
    document = {
        "scheme": asked.scheme,
        "texts": len(encoded),
        "rounds": asked.rounds,
        "step, of plain": {name: ratio(training, name, "plain") for name in ("qat", "qad")},
        "calibration, of bare forwards": ratio(calibration, "calibrate", "forward"),
        "seconds": {**training, **calibration},
    }
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


Step = Callable[[Sequence[Any]], None]


def plain(model: nn.Module) -> Step:
    """Fine-tuning on labels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(rows: Sequence[Any]) -> None:
        logits = model(**transformers.pad(rows, 0, task.INPUTS)).logits
        loss = F.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def towards(model: nn.Module, student: nn.Module, *, knowledge: bool) -> Step:
    """A step of the quantize stage's own training; the teacher's logits are made up, as a cache gives them."""
    settings = Quantize()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    classes = student.config.num_labels

    def step(rows: Sequence[Any]) -> None:
        inputs, teacher = transformers.pad(rows, 0, task.INPUTS), torch.zeros(len(rows), classes)
        loss = qat.distance_to(model, student, task, rows, inputs, teacher, settings, TEMPERATURE, knowledge)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def steps(way: Step, batches: Sequence[Sequence[Any]]) -> Callable[[], None]:
    """All batches, a step each."""

    def run() -> None:
        for rows in batches:
            way(rows)

    return run


def forwards(model: nn.Module, encoded: Sequence[Any]) -> Callable[[], None]:
    """The batches that calibration reads, by the float model alone."""
    batches = qat.same_length_batches(encoded, BATCH)

    def run() -> None:
        with torch.no_grad():
            for rows in batches:
                model(**transformers.pad([encoded[i] for i in rows], 0, task.INPUTS))

    return run


def interleaved(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round; one round before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if number:
                seconds[name].append(round(time.process_time() - began, 3))
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """The median over rounds."""
    return round(statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3)


if __name__ == "__main__":
    main()
