"""The distill stage: cache in, student out; as ``baseline`` the same student without a teacher.

Both train for the same number of steps. The validation split chooses the checkpoint; the test split is only
ever reported.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgekd import registry
from edgekd.artifact import SCRATCH, Facts, Inputs, write_json
from edgekd.data.stage import read_split
from edgekd.distill import student, trainer
from edgekd.losses.logits import forward_kl
from edgekd.recipe import Recipe
from edgekd.teach import transformers
from edgekd.teach.cache import read_logits
from edgekd.teach.stage import load_tokenizer


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``model/``, ``history.json`` and ``test_logits.safetensors``. Variant: kind = student | baseline."""
    task = registry.load("tasks", recipe.task)
    data, teach, kind = inputs["data"], inputs["teach"], inputs.variant["kind"]
    settings, tokenizer = recipe.distill, load_tokenizer(data.path)
    pad_token_id = data.facts["pad_token_id"]
    splits = {name: read_split(data.path, name) for name in ("train", "validation", "test", "unlabelled")}
    encoded = {name: task.encode(tokenizer, rows, recipe.data.max_length) for name, rows in splits.items() if rows}
    logits = {name: read_logits(teach, name) for name in encoded}

    names = ["train", *(["unlabelled"] if splits["unlabelled"] else [])]
    per_epoch = -(-sum(len(splits[name]) for name in names) // settings.batch_size)
    used = names if kind == "student" else ["train"]
    rows = trainer.Rows(
        encoded=[one for name in used for one in encoded[name]],
        labels=[example.get("label", -100) for name in used for example in splits[name]],
        teacher_NC=torch.cat([logits[name] for name in used]) if kind == "student" else None,
        pad_token_id=pad_token_id,
    )
    teacher = transformers.load_teacher(recipe.teacher, task.AUTO_TASK)
    model = student.make(settings.student, teacher, transformers.model_class(task.AUTO_TASK), recipe.seed)
    del teacher

    def judge(model: torch.nn.Module) -> dict[str, float]:
        found_NC = trainer.predict(model, encoded["validation"], pad_token_id)
        metrics = task.metrics(found_NC.numpy(), splits["validation"], logits["validation"].numpy())
        return {**metrics, "kl": forward_kl(found_NC, logits["validation"]).item()}

    def better(entry: dict[str, float]) -> tuple[float, ...]:
        return (entry[f"eval_{task.HEADLINE}"], -entry["eval_kl"] if kind == "student" else 0.0)

    began, max_steps = time.monotonic(), max(1, round(settings.epochs * per_epoch))
    history = trainer.train(
        model,
        rows,
        settings,
        alpha=settings.alpha if kind == "student" else 1.0,
        max_steps=max_steps,
        evaluate_every=min(max(1, round(settings.evaluate_every * per_epoch)), max_steps),
        seed=recipe.seed,
        scratch=out / SCRATCH,
        hard_loss=task.hard_loss,
        judge=judge,
        better=better,
        progress=inputs.progress,
    )
    seconds = time.monotonic() - began
    model = model.cpu().eval()
    student.save(model, data.path / "tokenizer", out / "model")
    test_NC = trainer.predict(model, encoded["test"], pad_token_id)
    save_file({"logits": test_NC}, out / "test_logits.safetensors")
    write_json(out / "history.json", history)
    best = trainer.best_of(trainer.evaluations(history), better)
    steps = max(entry["step"] for entry in history)
    return {
        "kind": kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": student.shape_of(model.config),
        "metrics": {
            "validation": _metrics(best),
            "test": task.metrics(test_NC.numpy(), splits["test"], logits["test"].numpy()),
        },
        "history": history,
        "best": {"step": best["step"], "epoch": best.get("epoch")},
        "steps": steps,
        "max_steps": max_steps,
        "seconds": seconds,
        "seconds_per_step": seconds / steps,
    }


def _metrics(entry: dict[str, Any]) -> dict[str, float]:
    return {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
