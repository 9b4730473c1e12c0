"""On-policy distillation: the student writes, and the teacher says of every token what it would have written there.

A second phase behind the first (``stage``), for students that write text. It goes on from the first phase's best
student, mixes batches that the student writes with the data's own (``writers``: TRL's trainers), and is kept only where
it is better. A student with other tokens than the teacher's learns from the data alone in the first phase.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import nn

from edgekd import registry
from edgekd.artifact import SCRATCH, Facts, Inputs
from edgekd.data.stage import TRANSFER, read_split
from edgekd.distill import stage, student, trainer, vocabulary, writers
from edgekd.errors import BadInput, Environment
from edgekd.outputs import save_outputs
from edgekd.recipe import Recipe
from edgekd.tasks._contract import Example
from edgekd.teach import transformers
from edgekd.teach.cache import read_logits

UNIT = "on-policy steps"
SPLITS = ("train", "validation", "test")


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """As ``stage.run``, and then the second phase: facts ``on_policy``, and all others of whoever won.

    Raises Environment without TRL, and BadInput where no prompt leaves room to write.
    """
    _library()
    task, data, settings = registry.load("tasks", recipe.task), inputs["data"], recipe.distill
    wanted, seed = settings.on_policy, recipe.seed if settings.seed is None else settings.seed
    rows = {name: read_split(data.path, name) for name in (*SPLITS, *TRANSFER)}
    theirs = data.path / "tokenizer"
    _check(recipe, task, rows, theirs, out / SCRATCH / "own-tokenizer")  # before the first phase takes its hours
    facts = stage.run(recipe, inputs, out, alone=True)
    foreign, pad_token_id = facts.get("own_tokens", False), facts["pad_token_id"]
    model_class, device = transformers.model_class(task.AUTO_TASK), transformers.device()
    model, processor = student.load(out / "model", model_class), task.processor(out / "model")
    size = transformers.at_once(model, recipe.data.max_length)
    encoded = {name: task.encode(processor, some, recipe.data.max_length) for name, some in rows.items()}
    goals = {} if foreign else {name: read_logits(inputs["teach"], name) for name in ("validation", "test")}

    def lines_of(*names: str, at_most: int | None = None) -> writers.Lines:
        some = [(row, one) for name in names for row, one in zip(rows[name], encoded[name], strict=True)]
        found = prompts(task, processor, [row for row, _ in some], recipe)
        some = [(*pair, prompt) for pair, prompt in zip(some, found, strict=True) if prompt]
        some = some[:: -(-len(some) // at_most)] if at_most else some
        return writers.lines(some, task, processor, task.processor(theirs) if foreign else None, pad_token_id)

    lines = lines_of("train", *TRANSFER)
    held = {name: lines_of(name, at_most=wanted.samples) for name in ("validation", "test")}

    def judge(model: nn.Module, name: str = "validation") -> dict[str, float]:
        found = transformers.predict(model, task, encoded[name], pad_token_id, size=size)
        goal = [transformers.arrays(goals[name])] if goals else []
        metrics = dict(task.metrics(transformers.arrays(found), rows[name], *goal))
        if goals:
            metrics["distance"] = stage.distance(task, found, goals[name])
        return {**metrics, "reverse_kl": taught.reverse_kl(model, held[name], size, seed)}

    def better(entry: Mapping[str, float]) -> tuple[float, ...]:
        headline = entry[f"eval_{task.HEADLINE}"]
        return ({"reverse-kl": -entry["eval_reverse_kl"], "metric": headline, "last": entry["step"]}[wanted.choose],)

    scratch, began = out / SCRATCH / "on-policy", time.monotonic()
    keeper = trainer.Keeper(
        scratch, better, settings.patience, lambda done, total, _: inputs.progress(done, total, UNIT), inputs.evaluated
    )
    common = _arguments(settings, scratch, seed)
    kind, arguments = writers.gold(settings, common, theirs) if foreign else writers.gkd(settings, common)
    taught = kind(
        model,
        transformers.load_teacher(recipe.teacher, task.AUTO_TASK),
        lines,
        processor,
        arguments,
        keeper=keeper,
        judge=judge,
        divergence=wanted.divergence,
        vocabulary=min(len(processor), model.config.vocab_size) if foreign else data.facts["vocabulary"],
    )
    history = trainer.fit(taught, scratch, better, settings.patience)
    seen = trainer.evaluations(history)
    before, after, best = seen[0], trainer.best_of(seen[1:], better), trainer.best_of(seen, better)
    seconds = time.monotonic() - began
    told: dict[str, dict[str, Any]] = {
        "before": {"validation": stage.metrics_of(before), "test": {}},
        "after": {"step": after["step"], "validation": stage.metrics_of(after), "test": {}},
    }
    kept = student.load(out / "model", model_class).to(device)
    told["before"]["test"] = judge(kept, "test")
    if best is after:
        load_model(kept, str(scratch / trainer.BEST))
        told["after"]["test"] = judge(kept, "test")
        facts["metrics"] = {name: told["after"][name] for name in ("validation", "test")}
        outputs = transformers.predict(kept, task, encoded["test"], pad_token_id, size=size)
        kept.cpu().save_pretrained(out / "model")
        save_outputs(out / stage.TEST_LOGITS, transformers.arrays(outputs))
    return facts | {
        "on_policy": {
            **told,
            "kept": "after" if best is after else "before",
            "unit": "byte" if foreign else "token",  # of the reverse KL
            "steps": max(entry["step"] for entry in history),
            "seconds": seconds,
            "rows": len(lines.prompts),
            "without_room": sum(len(rows[name]) for name in ("train", *TRANSFER)) - len(lines.prompts),
            "history": history,
        }
    }


def _check(recipe: Recipe, task: Any, rows: Mapping[str, Sequence[Example]], theirs: Path, work: Path) -> None:
    """Refuse what the second phase cannot do, by the tokenizers alone; the student's own is written to ``work``."""
    wanted, shape = recipe.distill.on_policy, recipe.distill.student
    assert wanted is not None
    mine = theirs
    if shape.model is not None:
        student.copy_tokenizer(shape.model, mine := work)
    processor = task.processor(mine)
    if vocabulary.are_others(theirs, mine):
        writers.check_other_tokens(wanted.divergence, processor, task.processor(theirs))
    elif vocabulary.new_ids(theirs, mine) is not None:
        raise BadInput(
            "its vocabulary is the teacher's with fewer tokens, whose ids are others",
            where="distill.student.model",
            todo="Drop distill.on_policy, or take a student with all of them.",
        )
    for name in SPLITS:
        if not any(prompts(task, processor, rows[name], recipe)):
            length = recipe.data.max_length
            raise BadInput(
                f"no prompt of {name} leaves room for {wanted.max_new_tokens} of data.max_length's {length} tokens",
                where="distill.on_policy.max_new_tokens",
                todo="Lower it, or raise data.max_length.",
            )


def prompts(task: Any, processor: Any, rows: Sequence[Example], recipe: Recipe) -> list[list[int]]:
    """What the student goes on from, by row: the prompt, or the first half of a text.

    None of more tokens than leave room for what is written: a text's beginning is cut, a longer prompt is empty here.
    """
    assert recipe.distill.on_policy is not None
    room = recipe.data.max_length - recipe.distill.on_policy.max_new_tokens
    found = [(row, task.prompt(processor, row, recipe.data.max_length)) for row in rows]
    return [ids[:room] if "text" in row else ids if len(ids) <= room else [] for row, ids in found]


def _arguments(settings: Any, scratch: Path, seed: int) -> dict[str, Any]:
    """What both trainers are told."""
    wanted = settings.on_policy
    common = trainer.common(
        settings, max_steps=wanted.steps, evaluate_every=wanted.evaluate_every, seed=seed, scratch=scratch
    )
    return common | {
        "learning_rate": wanted.learning_rate,
        "activation_checkpointing": settings.gradient_checkpointing,
        "eval_on_start": True,  # the first phase's student takes part
        "lmbda": wanted.share,
        "temperature": wanted.temperature,
    }


def _library() -> None:
    """Import TRL; raises Environment where it cannot run."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    logging.getLogger("trl").setLevel(logging.ERROR)  # it recommends another trainer, which mixes no batches
    registry.require("trl", "llm")
    if torch.cuda.device_count() > 1:
        raise Environment(
            f"this phase runs on one GPU, {torch.cuda.device_count()} are visible",
            where="distill.on_policy",
            todo="Show it one: CUDA_VISIBLE_DEVICES=0.",
        )
