"""Training with rounding of a student that writes text: what is compared, what wins, and what a kill costs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _language import LINES, model_of, tokenizer
from safetensors.numpy import load_file

from edgekd import artifact, pipeline, recipe
from edgekd.quantize import qat_tokens, tokens
from edgekd.quantize import scheme as schemes

SECTIONS: dict[str, Any] = {
    "task": "text-generation",
    "data": {"max_length": 32},
    "teach": {"tokens": "top:16"},
    "distill": {"max_steps": 0, "temperature": 1.0},
    "quantize": {"schemes": ["w4"], "steps": 20, "evaluate_every": 10, "learning_rate": 3e-4, "batch_size": 8},
    "export": {"targets": ["onnx"]},
}


def recipe_of(folder: Path, *sets: str) -> recipe.Recipe:
    sections = copy.deepcopy(SECTIONS)
    sections["teacher"] = {"model": str(folder / "teacher")}
    sections["distill"]["student"] = {"model": str(folder / "student")}
    sections["data"] |= {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    return recipe.parse(json.dumps(sections), overrides=sets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name, layers in (("teacher", 2), ("student", 1)):
        model_of("qwen3", tokenizer(folder / name), num_hidden_layers=layers).save_pretrained(folder / name)
    for name, lines in (("train", LINES[:120]), ("validation", LINES[120:140]), ("test", LINES[140:160])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def parents(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, artifact.Artifact]:
    made = pipeline.run(recipe_of(folder), tmp_path_factory.mktemp("run"), until="distill")
    return {name: made.steps[step] for name, step in (("data", "data"), ("teach", "teach"), ("distill", "distill-student"))}


def quantize(folder: Path, parents: dict[str, artifact.Artifact], out: Path, *sets: str, scheme: str = "w4", progress: artifact.Progress = artifact.no_progress) -> artifact.Facts:
    out.mkdir(exist_ok=True)
    return tokens.run(recipe_of(folder, *sets), artifact.Inputs(parents, {"scheme": scheme}, progress=progress), out)


def test_smoke(folder, parents, tmp_path):
    for scheme in ("w4", "w8", "w8a8-dynamic"):
        for method in ("qad", "qat"):
            facts = quantize(folder, parents, tmp_path / f"{scheme}{method}", f"quantize.method={method}", scheme=scheme)
            print(scheme, method, facts["chosen_step"], *facts["trace"], sep="\n")
    assert 0
