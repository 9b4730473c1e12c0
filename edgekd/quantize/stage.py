"""The quantize stage: the student becomes the Program of one scheme. Only here are scales chosen."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd import registry
from edgekd.artifact import SCRATCH, Artifact, Facts, Inputs, write_json
from edgekd.data.stage import TRANSFER, read_split
from edgekd.distill import sources
from edgekd.distill import student as students
from edgekd.distill.stage import TEST_LOGITS, distance
from edgekd.outputs import read_outputs, save_outputs
from edgekd.quantize import program, qat, reference, sensitivity, smooth, weights
from edgekd.quantize import scheme as schemes
from edgekd.quantize.scheme import Scheme
from edgekd.recipe import Recipe
from edgekd.tasks import _parts
from edgekd.teach import dual, transformers

NOT_TOKENIZER = frozenset({"config.json", "generation_config.json"})
HELD, SHARE = 1000, 10  # rows of text that the teacher has not learned, to judge by: at most so many, one in so many


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write the Program (see docs/architecture.md). Variant: scheme (``fp32`` has no teacher and nothing to choose),
    and the part, where the student becomes several artefacts."""
    task = _parts.of(registry.load("tasks", recipe.task), inputs.variant)
    data, distilled, scheme = inputs["data"], inputs["distill"], inputs.variant["scheme"]
    folder, length = distilled.path / "model", recipe.data.max_length
    processor, pad_token_id = task.processor(folder), distilled.facts["pad_token_id"]
    student = students.load(folder, transformers.model_class(task.AUTO_TASK)).eval()
    if "part" in inputs.variant:
        student = dual.tower(student, task.name)
    facts: Facts = {"method": "none", "chosen_step": 0, "trace": [], "layers": []}
    if scheme == "fp32":
        model = student
    else:
        wanted = schemes.get(scheme, recipe.quantize)
        model, facts = quantized(recipe, inputs, task, student, processor, pad_token_id, wanted, out / SCRATCH)
    whole = read_split(data.path, "test")
    places = _parts.places(task, whole)
    test = [whole[place] for place in places]
    encoded = task.encode(processor, test, length)
    exported = program.export(model, task, encoded[0], length)
    program.save(exported, out)
    integers = program.integer_module(exported)
    outputs = program.run(integers, task, encoded)
    arrays = [one.numpy() for one in outputs]
    save_outputs(out / program.REFERENCE, arrays, rows=None if len(test) == len(whole) else places)
    signature = program.signature(exported, task)
    texts = [task.sample_text(row) for row in test]
    write_json(out / program.GOLDEN, {"signature": signature, **program.golden(integers, task, texts, encoded)})
    for file in sorted(folder.iterdir()):
        if file.suffix != ".safetensors" and file.name not in NOT_TOKENIZER and _parts.has(task, file.name):
            shutil.copy2(file, out / file.name)
    shutil.copy2(data.path / "labels.json", out / "labels.json")
    values = torch.cat([one.flatten() for one in outputs])
    floats = arrays if len(test) == len(whole) else read_outputs(distilled.file(TEST_LOGITS))  # the other parts'
    return {
        **inputs.variant,
        **facts,
        "metrics": {"test": task.metrics(_parts.joined(places, arrays, floats), whole)},
        "max_length": length if "input_ids" in task.INPUTS else None,
        **signature,
        "pad_token_id": pad_token_id,
        "logit_range": float(values.max() - values.min()),
    }


def quantized(
    recipe: Recipe,
    inputs: Inputs,
    task: Any,
    student: nn.Module,
    processor: Any,
    pad_token_id: int,
    scheme: Scheme,
    scratch: Path,
) -> tuple[nn.Module, Facts]:
    """The student in reference modules of ``scheme``, and how it came about; checkpoints lie in ``scratch``."""
    settings, data = recipe.quantize, inputs["data"]
    splits = {name: _parts.mine(task, read_split(data.path, name)) for name in ("train", "validation", *TRANSFER)}
    encoded = {name: task.encode(processor, rows, recipe.data.max_length) for name, rows in splits.items() if rows}
    student.requires_grad_(False)
    count = min(settings.calibration_samples, len(encoded["train"]))
    some = random.Random(recipe.seed).sample(encoded["train"], count)
    found: weights.Numbers = {}  # a library's choice, which every trial of `mixed` would make again

    chosen: dict[str, int] = {}  # layers by how their int4 weights were chosen, of the latest model

    def calibrated(scheme: Scheme) -> nn.Module:
        chosen.clear()
        model = reference.prepare(copy.deepcopy(student), scheme).requires_grad_(True)
        least = settings.calibration == "mse"
        qat.calibrate(model, some, settings.percentile, task.INPUTS, least_squares=least)
        chosen.update(weights.choose(model, student, scheme, settings.weights, some, task, pad_token_id, found))
        return model

    apart: list[Any] = []
    for name in (name for name in TRANSFER if name in encoded):
        kept = len(encoded[name]) - _held(task, encoded[name])
        encoded[name], apart = encoded[name][:kept], apart + encoded[name][kept:]
    judge = _judge(task, student, encoded["validation"], splits["validation"], apart, pad_token_id)
    calibration: Facts = {"samples": count, "seed": recipe.seed, "activations": settings.calibration}
    if scheme.smooth:
        # The judge keeps the outputs of the student as it came. Training compares hidden states, and that of the
        # last norm may be scaled: its goal is the smoothed student, the same function.
        student = copy.deepcopy(student)
        calibration["smooth"] = smooth.fold(student, scheme, scheme.smooth, some, task, recipe.data.max_length)
    facts: Facts = {}
    if scheme.upgrade:
        size = max(1, settings.mixed.samples // task.GROUP) * task.GROUP
        few = _judge(task, student, encoded["validation"][:size], splits["validation"][:size], [], pad_token_id)
        scheme, facts["mixed"] = sensitivity.assign(calibrated, scheme, settings.mixed.max_drop, few, inputs.progress)
    model = calibrated(scheme)
    steps = settings.steps if scheme.trained and settings.method != "ptq" else 0
    limit = recipe.gate.max_accuracy_drop
    if settings.method == "auto" and (limit is None or judge(model)["drop"] <= limit):
        steps = 0
    pools = [
        qat.Pool(encoded[name], _source(recipe, task, data, inputs["teach"], name))
        for name in ("train", *TRANSFER)
        if name in encoded
    ]
    scratch.mkdir(parents=True, exist_ok=True)
    trace = qat.train(
        model,
        student,
        pools,
        settings,
        task,
        steps=steps,
        knowledge=settings.method != "qat",
        temperature=recipe.distill.temperature,
        pad_token_id=pad_token_id,
        seed=recipe.seed,
        scratch=scratch,
        judge=judge,
        progress=inputs.progress,
    )
    step = qat.chosen(trace)
    layers = [reference.described(name, layer) for name, layer in reference.layers(model)]
    if settings.calibration == "percentile":
        calibration["percentile"] = settings.percentile
    if chosen:
        calibration |= {"weights": settings.weights, "layers": chosen}
    method = "ptq" if not step else "qat" if settings.method == "qat" else "qad"
    facts |= {"method": method, "chosen_step": step, "trace": trace, "layers": layers, "calibration": calibration}
    return reference.convert(model), facts


def _held(task: Any, encoded: Sequence[Any]) -> int:
    """How many of these rows, the last ones, are judged by and not trained on; those that belong together stay so."""
    return min(HELD, len(encoded) // SHARE) // task.GROUP * task.GROUP


def _judge(
    task: Any, student: nn.Module, encoded: Sequence[Any], rows: Sequence[Any], apart: Sequence[Any], pad_token_id: int
) -> Callable[[nn.Module], dict[str, float]]:
    """Compares a model with the float student on held-out rows: agreement, distance, |difference| and ``drop``.

    The rows ``apart`` have no labels, but nor has the teacher learned them, as it may have the validation split, whose
    answers are then all sure. ``drop`` is on the split alone: the share of answers that are not the student's; where a
    task has none to compare, the headline metric below the student's.
    """
    every, split = [*encoded, *apart], range(len(encoded))
    goal = transformers.predict(student, task, every, pad_token_id)

    def metric(outputs: transformers.Outputs) -> float:
        found: float = task.metrics(transformers.arrays(transformers.pick(outputs, split)), rows)[task.HEADLINE]
        return found

    whole = cache(lambda: metric(goal))  # of tasks that have no answers to compare; a part of a pair has no metric

    def judge(model: nn.Module) -> dict[str, float]:
        found = transformers.predict(model, task, every, pad_token_id)
        agreed = task.agree(*(transformers.arrays(transformers.pick(one, split)) for one in (found, goal)))
        drop = whole() - metric(found) if agreed is None else 1 - float(agreed.mean())
        return compared(task, found, goal) | {"drop": drop}

    return judge


def compared(task: Any, found: transformers.Outputs, goal: transformers.Outputs) -> dict[str, float]:
    """``distance`` (the task's own loss), ``mean_abs_delta`` and, where it has a meaning, ``agreement`` of outputs."""
    agreed = task.agree(transformers.arrays(found), transformers.arrays(goal))
    mine, theirs = transformers.paired(task, found, goal)
    judged = {"distance": distance(task, found, goal), "mean_abs_delta": (mine - theirs).abs().mean().item()}
    return judged if agreed is None else judged | {"agreement": float(agreed.mean())}


def _source(recipe: Recipe, task: Any, data: Artifact, teach: Artifact, split: str) -> sources.Source:
    """The teacher's outputs for one split: from the cache or, where there is none, from the teacher."""
    rows = read_split(data.path, split)
    if not recipe.teach.online:
        whole, places = sources.Cached(teach, [split], ["logits"]), _parts.places(task, rows)
        return lambda picked: whole([places[row] for row in picked])
    teacher = transformers.load_teacher(recipe.teacher, task.AUTO_TASK)
    encoded = task.encode(task.processor(data.path / "tokenizer"), _parts.mine(task, rows), recipe.data.max_length)
    return sources.Online(teacher, task, encoded, data.facts["pad_token_id"], ["logits"])
