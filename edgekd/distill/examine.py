"""What can be known before hours of training: the KD doctor.

It runs teacher and student on a small sample and says in plain words what is likely to go wrong, and what to do.
Nothing here changes a file; a check that cannot be made is left out rather than guessed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from edgekd import registry
from edgekd.artifact import Artifact
from edgekd.data.stage import TRANSFER, read_split
from edgekd.distill import sources, stage, student, tokens, trainer, vocabulary
from edgekd.errors import BadInput
from edgekd.recipe import Recipe
from edgekd.tasks._contract import generates
from edgekd.teach import transformers
from edgekd.teach.cache import read_logits
from edgekd.teach.stage import cache_bytes

SAMPLE = 256  # rows that the teacher is asked
FITTED = 0.99  # above this on its own training rows, soft labels say little that the hard ones do not
SPELLED = 0.03  # above this share of texts, words that a trimmed vocabulary lacks cost accuracy
ALIKE = 0.9  # of the training rows: below this much of what the teacher says of a language is not heard
CLOSE = 1e-3  # largest difference between a cached and a fresh output

Finding = tuple[str, str, str]  # what, "ok" | "note", detail


def examine(
    recipe: Recipe,
    data: Artifact,
    teach: Artifact | None,
    baseline: Artifact | None,
    schemes: Sequence[student.Precision],
) -> Iterator[Finding]:
    """Findings, cheapest first; errors in the recipe are raised as BadInput."""
    task = registry.load("tasks", recipe.task)
    teacher = transformers.load_teacher(recipe.teacher, task.AUTO_TASK)
    ask = _Asker(recipe, task, data, teacher)
    test, train = ask.metric("test"), ask.metric("train")
    yield from _teacher(task, data, test, train, recipe)
    yield from _lengths(data, recipe)
    yield from _disk(recipe, task, data, teacher)
    if teach is not None:
        yield _cache(task, ask, teach)
    if baseline is not None and teach is not None:
        yield _baseline(task, baseline, teach)
    with tempfile.TemporaryDirectory() as work:
        start = stage.begin(recipe, task, data, teacher, Path(work))
        yield from _student(recipe, task, data, start, schemes)
        yield from _first_step(recipe, task, data, teacher, start, ask)


class _Asker:
    """The teacher's outputs on samples of the splits, and how long they took."""

    def __init__(self, recipe: Recipe, task: Any, data: Artifact, teacher: torch.nn.Module) -> None:
        self.recipe, self.task, self.data, self.teacher = recipe, task, data, teacher
        self.processor = task.processor(data.path / "tokenizer")
        self.seconds = self.rows = 0.0

    def sample(self, split: str) -> tuple[list[int], list[Any]]:
        """Evenly spread rows that belong together, and their numbers."""
        rows = read_split(self.data.path, split)
        step = max(1, len(rows) // SAMPLE // self.task.GROUP) * self.task.GROUP
        numbers = [i + k for i in range(0, len(rows), step) for k in range(self.task.GROUP) if i + k < len(rows)]
        return numbers, [rows[i] for i in numbers]

    def outputs(self, rows: list[Any]) -> transformers.Outputs:
        """The teacher's outputs."""
        encoded = self.task.encode(self.processor, rows, self.recipe.data.max_length)
        began = time.monotonic()
        found = transformers.predict(self.teacher, self.task, encoded, self.data.facts["pad_token_id"])
        self.seconds, self.rows = self.seconds + time.monotonic() - began, self.rows + len(rows)
        return found

    def metric(self, split: str) -> float:
        """The headline metric on a sample of a split."""
        _, rows = self.sample(split)
        found: float = self.task.metrics(transformers.arrays(self.outputs(rows)), rows)[self.task.HEADLINE]
        return found


def _teacher(task: Any, data: Artifact, test: float, train: float, recipe: Recipe) -> Iterator[Finding]:
    rows = read_split(data.path, "test")
    labels = [row["label"] for row in rows if "label" in row]
    majority = max(map(labels.count, set(labels))) / len(labels) if labels else 0.0
    name = task.HEADLINE
    if labels and test <= majority + 0.02:
        detail = f"{name} {test:.3f} on test, always the commonest label: {majority:.3f}. Its labels are in another"
        yield (
            "teacher",
            "note",
            f"{detail} order, its tokenizer is another's, or it was not fine-tuned: set data.labels.",
        )
    else:
        yield "teacher", "ok", f"{name} {test:.3f} on a sample of test, {train:.3f} on train"
    transfer = sum(data.facts["rows"].get(split, 0) for split in TRANSFER)
    if train >= FITTED and test < train - 0.01 and not transfer:
        yield (
            "transfer text",
            "note",
            f"the teacher fits its training text ({train:.3f}): its soft labels there say little beyond the hard ones, "
            "and a student of it alone will gain little over plain training. Set data.augment.copies (6 to 20) or "
            "data.unlabelled.",
        )
    elif train >= FITTED and transfer:
        yield "transfer text", "ok", f"{transfer} rows that only the teacher labels"
    if train >= FITTED and recipe.data.validation is None:
        detail = "it is cut from text that the teacher was trained on: its metric there is optimistic, its order is not"
        yield "validation", "note", detail


def _lengths(data: Artifact, recipe: Recipe) -> Iterator[Finding]:
    lengths = data.facts.get("lengths") or {}
    if lengths and lengths["max"] * 2 <= recipe.data.max_length:
        detail = (
            f"the longest test text has {lengths['max']} of data.max_length {recipe.data.max_length} tokens: fixed-"
        )
        yield "length", "note", f"{detail}length formats compute the rest for nothing. Set it to {lengths['max'] + 8}."
    elif lengths and lengths["p50"] * 2 <= recipe.data.max_length and recipe.export.buckets == 1:
        detail = f"half of the test texts have {lengths['p50']} or fewer of {recipe.data.max_length} tokens: "
        yield "length", "note", f"{detail}LiteRT and Core ML compute the rest for nothing. Set export.buckets (2 to 4)."


def _disk(recipe: Recipe, task: Any, data: Artifact, teacher: torch.nn.Module) -> Iterator[Finding]:
    size, limit = cache_bytes(recipe, task, data, teacher) / 1e9, recipe.teach.max_cache_gb
    told = f"the teacher's cache takes about {size:.2g} GB"
    if size > limit:
        yield "disk", "note", f"{told}, teach.max_cache_gb is {limit:g}: pool the features, or set teach.online: true"
    elif size > shutil.disk_usage(data.path).free / 1e9:
        yield "disk", "note", f"{told}, and less is free where the run is: choose another --run-dir"
    else:
        yield "disk", "ok", told


def _cache(task: Any, ask: _Asker, teach: Artifact) -> Finding:
    numbers, rows = ask.sample("test")
    kept = transformers.pick(read_logits(teach, "test"), numbers)
    mine, theirs = transformers.paired(task, ask.outputs(rows), kept)
    worst = (mine - theirs).abs().max().item()
    if teach.facts["teacher"].get("members"):
        return "cache", "ok", "made by several teachers; not compared"
    if worst > CLOSE:
        return "cache", "note", f"{len(rows)} rows asked again differ by up to {worst:.3g}: delete the teach step"
    return "cache", "ok", f"{len(rows)} rows asked again differ by at most {worst:.1e}"


def _baseline(task: Any, baseline: Artifact, teach: Artifact) -> Finding:
    plain = baseline.facts["metrics"]["test"][task.HEADLINE]
    taught = teach.facts["metrics"]["test"][task.HEADLINE]
    if plain >= taught:
        detail = (
            f"the student without a teacher reached {plain:.4f}, the teacher {taught:.4f}: there is nothing to learn"
        )
        return "baseline", "note", f"{detail} from it here. A better teacher or a smaller student makes the difference."
    return "baseline", "ok", f"the student without a teacher reached {plain:.4f}, the teacher {taught:.4f}"


def _student(
    recipe: Recipe, task: Any, data: Artifact, start: stage.Start, schemes: Sequence[student.Precision]
) -> Iterator[Finding]:
    found = student.summary(start.model, schemes, data.facts["lengths"].get("p50", 1))
    sizes = ", ".join(f"{scheme} {size / 1e6:.2f} MB" for scheme, size in found["size_bytes"].items())
    yield "student", "ok", f"{found['parameters'] / 1e6:.2f} M parameters; about {sizes}"
    words = found["embedding_parameters"]
    if words > found["parameters"] / 2 and start.vocabulary is None and "input_ids" in task.INPUTS:
        detail = f"{words / found['parameters']:.0%} of the student is its word table"
        yield "vocabulary", "note", f"{detail}: distill.student.vocabulary: 1.0 keeps the tokens of your text only"
    if start.vocabulary and start.vocabulary["unknown"] > 0.01:
        detail = f"{start.vocabulary['unknown']:.1%} of the validation texts have a word that is cut to [UNK]"
        yield "vocabulary", "note", f"{detail}: raise distill.student.vocabulary or give data.unlabelled"
    if start.vocabulary and start.vocabulary["more_pieces"] > SPELLED and not recipe.distill.student.vocabulary_size:
        detail = (
            f"{start.vocabulary['more_pieces']:.1%} of the validation texts have words that it must spell in pieces"
        )
        todo = "data.augment makes text with words near yours, distill.student.vocabulary_size gives them rows"
        yield "vocabulary", "note", f"{detail}: {todo}"
    if recipe.distill.student.model and recipe.distill.losses:
        terms = [term.loss for term in recipe.distill.losses if term.pool == "none"]
        if terms:
            detail = (
                f"{terms[0]} compares tokens, and the student's tokenizer is another: rows cut differently are left out"
            )
            yield "tokenizer", "note", detail


def _first_step(
    recipe: Recipe, task: Any, data: Artifact, teacher: torch.nn.Module, start: stage.Start, ask: _Asker
) -> Iterator[Finding]:
    """Loss of every term before training, each term's share, and how long everything will take."""
    settings = recipe.distill
    if settings.on_policy and vocabulary.are_others(data.path / "tokenizer", start.tokenizer):
        yield "tokens", "note", "the student's are not the teacher's: it learns from the data, then from what it writes"
        return
    splits = {name: read_split(data.path, name) for name in ("train", *TRANSFER)}
    some = splits["train"][: settings.batch_size]
    lessons = stage.lessons_of(recipe, task, start.model, teacher)
    names = sorted({"logits", *(link.teacher for lesson in lessons for link in lesson.links)})
    theirs = task.encode(ask.processor, some, recipe.data.max_length)
    ids = vocabulary.new_ids(data.path / "tokenizer", start.tokenizer) if generates(task) else None
    source = tokens.OnlineTokens if generates(task) else sources.Online
    parts: dict[str, Any] = {
        "task": task,
        "encoded": task.encode(start.processor, some, recipe.data.max_length),
        "targets": task.targets(some),
        "pad_token_id": start.pad_token_id,
        "source": source(teacher, task, theirs, data.facts["pad_token_id"], names),
    }
    if generates(task):
        alike = tokens.alike(parts["encoded"], theirs, ids)
        parts["aligned"] = torch.tensor(alike)
        if sum(alike) < ALIKE * len(alike):
            detail = f"{sum(alike)} of {len(alike)} training rows are cut into the teacher's tokens, and only those"
            todo = "teach more than their text: set distill.student.vocabulary: 1.0"
            yield "tokens", "note", f"{detail} {todo}"
        rows, ways = stage.token_rows(recipe, data, lessons, parts, ids)
    else:
        rows, ways = trainer.Rows(**parts), {}
    measure = ways.get("measure", trainer.values)
    model = trainer.learner(start.model, lessons, rows, recipe.seed, ways.get("kind", trainer.Learner)).train()
    batch = rows.collate(list(range(len(some))))
    numbers = batch.pop("rows").tolist()
    seconds = math.inf
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        inputs = dict(batch)
        _, found = measure(model, rows, lessons, inputs, numbers, settings.alpha, settings.temperature)
        total = torch.stack([weight * value for weight, value in found.values()]).sum()
        model.zero_grad()
        total.backward()
        seconds = min(seconds, time.monotonic() - began)
    if not torch.isfinite(total):
        raise BadInput("the loss is not finite before the first step", where="distill.losses")
    told = ", ".join(
        f"{name} {value.item():.3g}" + (f" x {weight:.2g}" if weight else "") for name, (weight, value) in found.items()
    )
    yield "loss at step 0", "ok", told
    parts = {name: float(weight * value) for name, (weight, value) in found.items() if weight}
    loud = max(parts, key=lambda name: parts[name])
    if len(parts) > 1 and parts[loud] > 0.95 * sum(parts.values()):
        yield "loss at step 0", "note", f"{loud} is {parts[loud] / sum(parts.values()):.0%} of it: lower its weight"
    count = sum(map(len, splits.values()))
    steps = round(settings.epochs * -(-count // settings.batch_size))
    steps = steps if settings.max_steps is None else settings.max_steps
    label = (count + sum(data.facts["rows"][name] for name in ("validation", "test"))) * ask.seconds / max(1, ask.rows)
    both = 2 if settings.baseline and steps else 1
    yield (
        "time",
        "ok",
        f"about {_minutes(label)} for the teacher's {count} rows, {_minutes(steps * seconds)} for {steps} steps"
        + (" and as long for the baseline" if both == 2 else ""),
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
