"""Cost of a distillation step from the cache, against a plain fine-tuning step and against TextBrewer doing it online.

    python benchmarks/distill.py --teacher FOLDER --data train.csv [--steps 40] [--rounds 3] [--layers 3]
                                 [--hidden 384] [--against plain|textbrewer]

Ours: the distill stage's trainer with the teacher's logits and features from the cache.
plain: transformers.Trainer on the same student with labels, its own loss and its own padding collator; ours adds
logits and pooled features ([CLS] and mean of the last layer).
textbrewer (pip install textbrewer tensorboard): its GeneralDistiller with the teacher in memory, cross entropy of the
softened logits (weighted by T^2: its loss has no such factor) and hidden_mse of the last layer's tokens; ours computes
forward-kl, which has the same gradient, and hidden-mse with pool none.

All are given the same batches: grouping by length differs between libraries, and a ratio would mostly measure that.
The two take turns; prints CPU seconds per step of each round (wall time follows the neighbours on a shared machine)
and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments

from edgekd import artifact, pipeline, recipe, registry
from edgekd.data.stage import read_split
from edgekd.distill import sources, stage, student, trainer
from edgekd.recipe import Recipe, Term
from edgekd.teach import transformers

KL = Term(loss="forward-kl")
TERMS = {
    "plain": [KL, Term(loss="hidden-mse", pool="cls"), Term(loss="hidden-mse", pool="mean")],
    "textbrewer": [KL, Term(loss="hidden-mse", pool="none")],
}


@dataclass(frozen=True)
class Setting:
    """What both sides are given."""

    recipe: Recipe
    task: Any
    rows: trainer.Rows
    lessons: list[trainer.Lesson]
    student: torch.nn.Module
    teacher: torch.nn.Module
    tokenizer: Path
    steps: int
    work: Path


def main() -> None:
    """Measure and print one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--teacher", required=True)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--layers", type=int, default=3)
    arguments.add_argument("--hidden", type=int, help="the student's width; default: the teacher's")
    arguments.add_argument("--against", choices=sorted(TERMS), default="plain")
    asked = arguments.parse_args()
    setting = prepare(asked)
    sides: dict[str, Callable[[Setting, int], float]] = {
        "ours": ours,
        asked.against: {"plain": plain, "textbrewer": textbrewer}[asked.against],
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(asked.rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            found[name].append(sides[name](setting, number))
    ratios = [a / b for a, b in zip(found["ours"], found[asked.against], strict=True)]
    result = {"seconds_per_step": found, f"ours_of_{asked.against}": statistics.median(ratios), "ratios": ratios}
    sys.stdout.write(json.dumps(result) + "\n")


def prepare(asked: argparse.Namespace) -> Setting:
    """Teach once; build the student, the rows and the terms."""
    work = Path(tempfile.mkdtemp())
    count = asked.steps * 32
    sets = [
        f"teacher.model={asked.teacher}",
        f"data.train={asked.data}",
        f"data.limit={round(count * 1.3)}",
        f"distill.student.layers={asked.layers}",
        f"distill.losses={json.dumps([term.model_dump(mode='json') for term in TERMS[asked.against]])}",
    ]
    if asked.hidden:
        sizes = {"hidden_size": asked.hidden, "heads": asked.hidden // 32, "intermediate_size": 4 * asked.hidden}
        sets += [f"distill.student.{name}={size}" for name, size in sizes.items()]
    made = recipe.parse("{}", overrides=sets)
    run = pipeline.run(made, work / "run", until="teach")
    data, teach = run.steps["data"], run.steps["teach"]
    task = registry.load("tasks", made.task)
    examples = read_split(data.path, "train")[:count]
    encoded = task.encode(task.processor(data.path / "tokenizer"), examples, made.data.max_length)
    teacher = transformers.load_teacher(made.teacher, task.AUTO_TASK)
    start = student.make(made.distill.student, teacher, transformers.model_class(task.AUTO_TASK), 0)
    lessons = stage.lessons_of(made, task, start, teacher)
    names = sorted({"logits", *(link.teacher for lesson in lessons for link in lesson.links)})
    source = sources.Cached(teach, ["train"], names)
    rows = trainer.Rows(task, encoded, task.targets(examples), data.facts["pad_token_id"], source)
    return Setting(made, task, rows, lessons, start, teacher, data.path / "tokenizer", asked.steps, work)


def ours(setting: Setting, number: int) -> float:
    """CPU seconds per step of the distill stage's trainer."""
    began = time.process_time()
    trainer.train(
        copy.deepcopy(setting.student),
        setting.rows,
        setting.recipe.distill,
        setting.lessons,
        max_steps=setting.steps,
        evaluate_every=10**9,
        seed=number,
        scratch=setting.work / f"ours{number}",
        judge=lambda model: {"accuracy": 0.0},
        better=lambda entry: (0.0,),
        progress=artifact.no_progress,
    )
    return (time.process_time() - began) / setting.steps


def plain(setting: Setting, number: int) -> float:
    """CPU seconds per step of transformers.Trainer on labels."""
    settings = setting.recipe.distill
    arguments = TrainingArguments(
        output_dir=str(setting.work / f"plain{number}"),
        max_steps=setting.steps,
        per_device_train_batch_size=settings.batch_size,
        report_to=[],
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        logging_steps=25,
        seed=number,
        dataloader_pin_memory=False,
    )
    rows = setting.rows
    labelled = [{**row, "labels": label} for row, label in zip(rows.encoded, rows.targets, strict=True)]
    one = _Plain(
        model=copy.deepcopy(setting.student),
        args=arguments,
        train_dataset=_Rows(labelled),
        data_collator=DataCollatorWithPadding(PreTrainedTokenizerFast.from_pretrained(setting.tokenizer)),
    )
    began = time.process_time()
    one.train()
    return (time.process_time() - began) / setting.steps


def textbrewer(setting: Setting, number: int) -> float:
    """CPU seconds per step of TextBrewer's GeneralDistiller, the teacher in memory."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    settings, model = setting.recipe.distill, copy.deepcopy(setting.student)
    depth = [model.config.num_hidden_layers, setting.teacher.config.num_hidden_layers]

    def adapt(batch: dict[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
        return {
            "logits": outputs.logits,
            "hidden": outputs.hidden_states,
            "inputs_mask": batch["attention_mask"],
            "losses": [torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])],
        }

    match: dict[str, Any] = {"layer_S": depth[0], "layer_T": depth[1], "feature": "hidden", "loss": "hidden_mse"}
    match["weight"] = 1
    widths = [model.config.hidden_size, setting.teacher.config.hidden_size]
    if widths[0] != widths[1]:
        match["proj"] = ["linear", *widths, {"lr": settings.learning_rate}]
    distiller = GeneralDistiller(
        train_config=TrainingConfig(output_dir=str(setting.work / "tb"), log_dir=None, device="cpu", ckpt_steps=10**9),
        distill_config=DistillationConfig(
            temperature=settings.temperature,
            kd_loss_type="ce",
            kd_loss_weight=(1 - settings.alpha) * settings.temperature**2,
            hard_label_weight=settings.alpha,
            intermediate_matches=[match],
        ),
        model_T=setting.teacher,
        model_S=model,
        adaptor_T=adapt,
        adaptor_S=adapt,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    batches = list(_batches(setting, number))
    began = time.process_time()
    with distiller:
        distiller.train(
            optimizer,
            batches,
            num_epochs=1,
            max_grad_norm=1.0,
            callback=None,
            output_hidden_states=True,
        )
    return (time.process_time() - began) / len(batches)


def _batches(setting: Setting, number: int) -> Iterator[dict[str, torch.Tensor]]:
    """The same batches as the trainer's."""
    size = setting.recipe.distill.batch_size
    order = list(trainer.LengthGrouped([len(one["input_ids"]) for one in setting.rows.encoded], size, number))
    for start in range(0, setting.steps * size, size):
        batch = setting.rows.collate(order[start : start + size])
        rows = batch.pop("rows").tolist()
        yield {**batch, "labels": torch.tensor([setting.rows.targets[row] for row in rows])}


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
