"""The quantize stage: the student becomes the Program of one scheme. Only here are scales chosen."""

from __future__ import annotations

import copy
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from edgekd import registry
from edgekd.artifact import SCRATCH, Facts, Inputs, write_json
from edgekd.data.stage import read_split
from edgekd.distill.trainer import predict
from edgekd.losses.logits import forward_kl
from edgekd.quantize import program, qat, reference
from edgekd.recipe import Recipe
from edgekd.teach.cache import read_logits
from edgekd.teach.stage import load_tokenizer
from edgekd.teach.transformers import model_class

INPUTS = [{"name": "input_ids", "dtype": "int64"}, {"name": "attention_mask", "dtype": "int64"}]
OUTPUTS = [{"name": "logits", "dtype": "float32"}]


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write the Program (see docs/architecture.md). Variant: scheme; ``fp32`` has no teacher and nothing to choose."""
    task = registry.load("tasks", recipe.task)
    data, scheme = inputs["data"], inputs.variant["scheme"]
    tokenizer, length = load_tokenizer(data.path), recipe.data.max_length
    student = model_class(task.AUTO_TASK).from_pretrained(inputs["distill"].path / "model", dtype=torch.float32).eval()
    facts: Facts = {"method": "none", "chosen_step": 0, "trace": [], "layers": []}
    if scheme == "fp32":
        model = student
    else:
        model, facts = _quantized(recipe, inputs, task, student, out / SCRATCH)
    exported = program.export(model, length, task.AUTO_TASK)
    program.save(exported, out)
    test = read_split(data.path, "test")
    encoded = task.encode(tokenizer, test, length)
    integers = program.integer_module(exported)
    logits_NC = program.run(integers, encoded)
    save_file({"logits": logits_NC}, out / program.REFERENCE)
    write_json(out / program.GOLDEN, program.golden(integers, [task.sample_text(e) for e in test], encoded))
    for file in sorted((data.path / "tokenizer").iterdir()):
        shutil.copy2(file, out / file.name)
    shutil.copy2(data.path / "labels.json", out / "labels.json")
    return {
        "scheme": scheme,
        **facts,
        "metrics": {"test": task.metrics(logits_NC.numpy(), test)},
        "max_length": length,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "pad_token_id": data.facts["pad_token_id"],
        "logit_range": float(logits_NC.max() - logits_NC.min()),
    }


def _quantized(recipe: Recipe, inputs: Inputs, task: Any, student: nn.Module, scratch: Path) -> tuple[nn.Module, Facts]:
    settings, data = recipe.quantize, inputs["data"]
    tokenizer, pad_token_id = load_tokenizer(data.path), data.facts["pad_token_id"]
    splits = {name: read_split(data.path, name) for name in ("train", "validation", "unlabelled")}
    encoded = {name: task.encode(tokenizer, rows, recipe.data.max_length) for name, rows in splits.items() if rows}
    student.requires_grad_(False)
    model = reference.prepare(copy.deepcopy(student)).requires_grad_(True)
    count = min(settings.calibration_samples, len(encoded["train"]))
    qat.calibrate(model, random.Random(recipe.seed).sample(encoded["train"], count), settings.percentile)
    goal_NC = predict(student, encoded["validation"], pad_token_id)

    def judge(model: nn.Module) -> dict[str, float]:
        found_NC = predict(model, encoded["validation"], pad_token_id)
        return {
            "agreement": (found_NC.argmax(-1) == goal_NC.argmax(-1)).float().mean().item(),
            "kl": forward_kl(found_NC, goal_NC).item(),
            "mean_abs_delta": (found_NC - goal_NC).abs().mean().item(),
        }

    pools = [
        qat.Pool(encoded[name], read_logits(inputs["teach"], name))
        for name in ("train", "unlabelled")
        if name in encoded
    ]
    scratch.mkdir(parents=True, exist_ok=True)
    trace = qat.train(
        model,
        student,
        pools,
        settings,
        temperature=recipe.distill.temperature,
        pad_token_id=pad_token_id,
        seed=recipe.seed,
        scratch=scratch,
        judge=judge,
        progress=inputs.progress,
    )
    step = qat.chosen(trace)
    layers = [
        {"name": name, "input": layer.input_quantizer.numbers(), "output": layer.output_quantizer.numbers()}
        for name, layer in reference.layers(model)
    ]
    calibration = {"samples": count, "percentile": settings.percentile, "seed": recipe.seed}
    facts = {"method": "qat" if step else "ptq", "chosen_step": step, "trace": trace, "layers": layers}
    return reference.convert(model), {**facts, "calibration": calibration}
