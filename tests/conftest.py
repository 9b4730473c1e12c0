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

ROOT = Path(__file__).resolve().parents[1]
# Real data sets and teachers are not part of the project: point EDGEKD_SHARED at a folder with data/ and teachers/.
SHARED = Path(os.environ.get("EDGEKD_SHARED", ROOT.parent / "shared"))

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

    def call(*arguments: str | Path, cwd: Path | None = None, timeout: float = 600) -> Said:
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
