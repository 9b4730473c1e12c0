"""kill -9 in every stage: the same command goes on, and what comes out is the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact

ROOT = Path(__file__).resolve().parents[1]
SETS = ("--set", "distill.baseline=false", "--set", "distill.epochs=6", "--set", "quantize.steps=30")
TRAINING = ("data", "teach", "distill-student", "quantize-fp32", "quantize-w8a8")
SOME = ("distill-student", "quantize-w8a8")  # those that have the most to lose
STEPS = (*TRAINING, "export-onnx-w8a8", "verify-onnx-w8a8", "bench")


def command(tiny, run: Path) -> list[str]:  # type: ignore[no-untyped-def]
    return [sys.executable, "-m", "edgekd", "ship", str(tiny.folder / "recipe.yaml"), "--run-dir", str(run), *SETS]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
OPTIONS: dict[str, Any] = {"env": ENVIRONMENT, "stdin": subprocess.DEVNULL}


def digests(run: Path) -> dict[str, str]:
    """Content digest of every finished step."""
    found = [artifact.load(path.parent) for path in (run / "steps").glob("*/manifest.json")]
    return {f"{one.stage}-{one.label}": one.digest for one in found}


pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> dict[str, str]:  # type: ignore[no-untyped-def]
    run = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(command(tiny, run), capture_output=True, text=True, **OPTIONS)
    assert done.returncode == 0, done.stderr[-3000:]
    return digests(run)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [SOME, STEPS], ids=["some", "every"])
def test_a_kill_in_a_stage_changes_nothing(  # type: ignore[no-untyped-def]
    steps: tuple[str, ...], tiny, whole: dict[str, str], tmp_path: Path
) -> None:
    """One run, killed once in each of these stages at a random moment, restarted each time with the same command."""
    run, chance, killed = tmp_path / "run", random.Random(0), []
    for step in steps:
        child = subprocess.Popen(
            command(tiny, run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **OPTIONS
        )
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith(f"{step}: start"):
                time.sleep(chance.uniform(0.0, 1.0))
                child.send_signal(signal.SIGKILL)
                killed.append(step)
                break
        child.wait()
        child.stderr.close()
        time.sleep(1.5)  # children of a killed parent end themselves
        assert not (run / "report.json").exists()
    assert killed == list(steps)
    done = subprocess.run(command(tiny, run), capture_output=True, text=True, **OPTIONS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(run) == whole


def _hears_interrupts() -> None:
    """Undo what a shell does to a command in the background: it ignores SIGINT, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_ends_with_130_and_says_so(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    child = subprocess.Popen(
        command(tiny, tmp_path / "run"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_hears_interrupts,
        **OPTIONS,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("distill-student: start"):
            time.sleep(0.5)
            child.send_signal(signal.SIGINT)
            break
    _, rest = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "the same command goes on" in rest and "Traceback" not in rest
    assert "made" not in rest  # it stopped at once, not at the end of the step
