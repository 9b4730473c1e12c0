"""A small honest teacher for the examples whose data comes without one: digits, stsb, squad, restaurant8k.

    python examples/make_teacher.py digits OUT --train digits.npz:train --test digits.npz:test
    python examples/make_teacher.py squad OUT --train train.jsonl --test validation.jsonl --base ENCODER

ENCODER is any BERT-like transformers folder or hub id, for example sentence-transformers/all-MiniLM-L6-v2; digits
needs none and trains a vision transformer from nothing in a minute. It is plain fine-tuning on the hard labels, kept
short; a teacher of your own is better. Prints the metrics on the test rows as JSON, and refuses nothing: edgekd
checks what it reads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from edgekd import registry
from edgekd.data.load import read_table
from edgekd.teach.transformers import arrays, model_class, pad, predict


@dataclass(frozen=True)
class Plan:
    """How one example's teacher is trained."""

    task: str
    steps: int
    batch_size: int  # rows
    learning_rate: float
    max_length: int = 64
    labels: tuple[str, ...] = ()


SLOTS = ("date", "first_name", "last_name", "people", "time")
PLANS = {
    "digits": Plan("image-classification", 1500, 64, 2e-3, labels=tuple("0123456789")),
    "stsb": Plan("sentence-similarity", 400, 32, 3e-5),
    "squad": Plan("question-answering", 800, 16, 1e-4, max_length=192),
    "restaurant8k": Plan(
        "token-classification", 600, 64, 1.5e-4, labels=("O", *(f"{kind}-{slot}" for slot in SLOTS for kind in "BI"))
    ),
}


def vision_transformer(labels: tuple[str, ...], out: Path) -> torch.nn.Module:
    """Four layers of width 64 over the 16 patches of an 8 x 8 image whose darkest value is 16."""
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.1,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    transformers.ViTImageProcessorPil(
        size={"height": 8, "width": 8}, rescale_factor=1 / 16, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(out)
    return transformers.ViTForImageClassification(config)


def encoder(plan: Plan, auto_task: str, base: str, out: Path) -> torch.nn.Module:
    """The encoder with a fresh head of the task."""
    names = plan.labels or ("LABEL_0", "LABEL_1")  # start and end; a similarity model has no head
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(out)
    config = transformers.AutoConfig.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    return model_class(auto_task).from_pretrained(
        base, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )


def batches(rows: int, size: int, group: int) -> Iterator[list[int]]:
    """Row numbers of one shuffled epoch; ``group`` consecutive rows stay together."""
    order = (torch.randperm(rows // group)[:, None] * group + torch.arange(group)).flatten()
    yield from (picked.tolist() for picked in order.split(size))


def train(model: torch.nn.Module, task: Any, plan: Plan, encoded: list[Any], targets: list[Any], minutes: float) -> int:
    """AdamW with a linear fall; returns the steps made within ``minutes``."""
    optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate, weight_decay=0.01)
    began, step = time.monotonic(), 0
    model.train()
    while step < plan.steps:
        for picked in batches(len(encoded), plan.batch_size, task.GROUP):
            share = max(step / plan.steps, (time.monotonic() - began) / (60 * minutes))
            if share >= 1:
                return step
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * min(1 - share, (step + 1) / (0.1 * plan.steps))
            inputs = pad([encoded[i] for i in picked], 0, task.INPUTS)
            logits = task.logits(model(**inputs), inputs)
            outputs = [task.take(one, encoded[i]) for one, i in zip(logits, picked, strict=True)]
            loss = task.hard_loss(task.stack(outputs), [targets[i] for i in picked])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
    return step


def main() -> None:
    """Read, train, judge, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", choices=PLANS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--base", help="encoder to start from; digits has none")
    parser.add_argument("--limit", type=int, help="only so many rows of each table")
    parser.add_argument("--minutes", type=float, default=60, help="stop training after so long")
    asked = parser.parse_args()
    torch.manual_seed(0)
    plan = PLANS[asked.example]
    task = registry.load("tasks", plan.task)
    if "pixel_values" in task.INPUTS:
        model = vision_transformer(plan.labels, asked.out)
    elif asked.base:
        model = encoder(plan, task.AUTO_TASK, asked.base, asked.out)
    else:
        parser.error(f"{asked.example} needs --base")
    processor, splits = task.processor(asked.out), {}
    for name in ("train", "test"):
        table = read_table(
            getattr(asked, name),
            task.COLUMNS,
            {},
            optional=task.OPTIONAL_COLUMNS,
            lists=task.LIST_COLUMNS,
            files=task.FILE_COLUMNS,
        )
        examples = [task.example(row, plan.labels) for row in table[: asked.limit]]
        splits[name] = task.expand(examples, processor, plan.max_length)
    encoded = {name: task.encode(processor, rows, plan.max_length) for name, rows in splits.items()}
    before = task.metrics(arrays(predict(model, task, encoded["test"], 0)), splits["test"])
    steps = train(model, task, plan, encoded["train"], task.targets(splits["train"]), asked.minutes)
    after = task.metrics(arrays(predict(model, task, encoded["test"], 0)), splits["test"])
    model.save_pretrained(asked.out)
    rows = {name: len(some) for name, some in splits.items()}
    sys.stdout.write(json.dumps({"steps": steps, "rows": rows, "before": before, "test": after}) + "\n")


if __name__ == "__main__":
    main()
