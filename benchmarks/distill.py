"""Cost of a distillation step from the cache against a plain fine-tuning step of the same student.

    python benchmarks/distill.py --teacher FOLDER --data train.csv [--steps 40] [--rounds 3] [--layers 3]

Plain: transformers.Trainer on the same student with labels, its own loss and its own padding collator. Ours: the
distill stage's trainer with cached logits. Both are given the same batches: the Trainer's own grouping by length pads
more on few rows, and a ratio would mostly measure that. The two take turns; prints CPU seconds per step of each round
(wall time follows the neighbours on a shared machine) and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments

from edgekd import artifact, pipeline, recipe, registry
from edgekd.data.stage import read_split
from edgekd.distill import student, trainer
from edgekd.teach import transformers
from edgekd.teach.cache import read_logits
from edgekd.teach.stage import load_tokenizer


def main() -> None:
    """Measure and print one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--teacher", required=True)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--layers", type=int, default=3)
    asked = arguments.parse_args()
    work = Path(tempfile.mkdtemp())
    rows = asked.steps * 32
    sets = [
        f"teacher.model={asked.teacher}",
        f"data.train={asked.data}",
        f"data.limit={round(rows * 1.3)}",
        f"distill.student.layers={asked.layers}",
    ]
    made = recipe.parse("{}", overrides=sets)
    run = pipeline.run(made, work / "run", until="teach")
    data, teach = run.steps["data"], run.steps["teach"]
    task = registry.load("tasks", made.task)
    examples = read_split(data.path, "train")[:rows]
    encoded = task.encode(load_tokenizer(data.path), examples, made.data.max_length)
    labels = [example["label"] for example in examples]
    kind = transformers.model_class(task.AUTO_TASK)
    start = student.make(made.distill.student, transformers.load_teacher(made.teacher, task.AUTO_TASK), kind, 0)
    cached = trainer.Rows(encoded, labels, read_logits(teach, "train")[:rows], data.facts["pad_token_id"])

    def ours(number: int) -> float:
        began = time.process_time()
        trainer.train(
            copy.deepcopy(start),
            cached,
            made.distill,
            alpha=0.1,
            max_steps=asked.steps,
            evaluate_every=10**9,
            seed=number,
            scratch=work / f"ours{number}",
            hard_loss=task.hard_loss,
            judge=lambda model: {"accuracy": 0.0, "kl": 0.0},
            better=lambda entry: (0.0,),
            progress=artifact.no_progress,
        )
        return (time.process_time() - began) / asked.steps

    def plain(number: int) -> float:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(data.path / "tokenizer")
        settings = TrainingArguments(
            output_dir=str(work / f"plain{number}"),
            max_steps=asked.steps,
            per_device_train_batch_size=made.distill.batch_size,
            report_to=[],
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=made.distill.checkpoint_every,
            logging_steps=25,
            seed=number,
            dataloader_pin_memory=False,
        )
        rows = [{**row, "labels": label} for row, label in zip(encoded, labels, strict=True)]
        one = _Plain(
            model=copy.deepcopy(start),
            args=settings,
            train_dataset=_Rows(rows),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        began = time.process_time()
        one.train()
        return (time.process_time() - began) / asked.steps

    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(asked.rounds):
        for name, measure in (("ours", ours), ("plain", plain)) if number % 2 else (("plain", plain), ("ours", ours)):
            found[name].append(measure(number))
    ratios = [a / b for a, b in zip(found["ours"], found["plain"], strict=True)]
    result = {"seconds_per_step": found, "ours_of_plain": statistics.median(ratios), "ratios": ratios}
    sys.stdout.write(json.dumps(result) + "\n")


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.rows[index]


class _Plain(Trainer):
    """The Trainer as it is, but for the order of the rows."""

    def _get_train_sampler(self, *_: object) -> trainer.LengthGrouped:
        lengths = [len(row["input_ids"]) for row in self.train_dataset.rows]
        return trainer.LengthGrouped(lengths, self.args.per_device_train_batch_size, self.args.seed)


if __name__ == "__main__":
    main()
