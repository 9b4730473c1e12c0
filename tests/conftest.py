"""Shared fixtures: where the real data and teachers lie, and how the command line is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from _material import ROOT, SHARED, tiny_rows, write_csv

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def banking77() -> dict[str, Path]:
    """Real teacher and data; the test is skipped where they are absent."""
    teacher, data = SHARED / "teachers" / "banking77-minilm-l6", SHARED / "data" / "banking77"
    if not (teacher / "model.safetensors").is_file() or not (data / "train.csv").is_file():
        pytest.skip(f"no banking77 teacher and data under {SHARED} (set EDGEKD_SHARED)")
    return {"teacher": teacher, "train": data / "train.csv", "test": data / "test.csv"}


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def edgekd():  # type: ignore[no-untyped-def]
    """Call the command line as a user does, in a process of its own."""

    def call(*arguments: str | Path, cwd: Path | None = None, timeout: float = 3600) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "edgekd", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return call


@dataclass(frozen=True)
class Tiny:
    """A task that a two-layer BERT learns in seconds: files, teacher, and a recipe for it."""

    folder: Path
    labels: tuple[str, ...] = ("fruit", "metal", "river")

    @property
    def recipe(self) -> str:
        return TINY_RECIPE.format(folder=self.folder)


TINY_RECIPE = """
name: tiny
teacher: {{model: {folder}/teacher}}
data: {{train: {folder}/train.csv, test: {folder}/test.csv, max_length: 16}}
teach: {{batch_size: 16, shard_samples: 64}}
distill:
  student: {{layers: 1}}
  epochs: 3
  batch_size: 16
  learning_rate: 2.0e-3
  checkpoint_every: 10
quantize: {{steps: 6, evaluate_every: 3, batch_size: 8, calibration_samples: 64}}
export: {{targets: [onnx]}}
gate: {{max_accuracy_drop: 0.05, min_program_agreement: 0.95, min_teacher_ratio: 0.9, not_slower: false}}
bench: {{warmup_runs: 1, warmup_seconds: 0, min_runs: 6, min_seconds: 0, blocks: 2, cold_loads: 1}}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Files and a trained teacher, made once per test session (a few seconds)."""
    import torch

    from edgekd.artifact import no_progress
    from edgekd.quickstart import train_teacher

    torch.set_num_threads(1)
    made = Tiny(tmp_path_factory.mktemp("tiny"))
    train = tiny_rows(240, seed=1)
    write_csv(made.folder / "train.csv", train)
    write_csv(made.folder / "test.csv", tiny_rows(90, seed=2))
    train_teacher(
        train,
        made.labels,
        made.folder / "teacher",
        no_progress,
        layers=2,
        hidden_size=32,
        vocabulary=300,
        epochs=12,
        learning_rate=3e-3,
    )
    (made.folder / "recipe.yaml").write_text(made.recipe)
    return made
