"""Interruptions at the awkward moments: after the last step, after an early stop, in the middle of a save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd import artifact, pipeline, recipe
from edgekd.distill import stage, student, trainer

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = ("model/model.safetensors", "history.json", "test_logits.safetensors")
KILLED_IN_A_SAVE = """
import os, signal, sys
from pathlib import Path
import torch
from edgekd import artifact, recipe
from edgekd.distill import stage

real = torch.save
def half(value, path, *rest, **named):
    if "checkpoint-20" in str(path) and "optimizer" in str(path):
        Path(path).write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    return real(value, path, *rest, **named)

torch.save = half
data, teach, out, text = sys.argv[1:]
parents = {"data": artifact.load(Path(data)), "teach": artifact.load(Path(teach))}
stage.run(recipe.parse(text), artifact.Inputs(parents, {"kind": "student"}), Path(out))
"""


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory) -> pipeline.Result:  # type: ignore[no-untyped-def]
    return pipeline.run(recipe.parse(tiny.recipe), tmp_path_factory.mktemp("run"), until="teach")


def run(tiny, taught, out: Path, *sets: str) -> dict:  # type: ignore[no-untyped-def]
    out.mkdir(exist_ok=True)
    parents = {"data": taught.steps["data"], "teach": taught.steps["teach"]}
    return stage.run(recipe.parse(tiny.recipe, overrides=sets), artifact.Inputs(parents, {"kind": "student"}), out)


def same_bytes(one: Path, other: Path) -> None:
    for name in OUTPUTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# An epoch has 14 steps. Each case ends with a checkpoint of its very last state: by max_steps in the middle of an
# epoch, by max_steps between two evaluations, and by an early stop on a checkpoint step.
CASES = {
    "in the middle of an epoch": ("distill.epochs=2.5",),
    "between evaluations": ("distill.epochs=2.5", "distill.evaluate_every=1.1"),
    "early stop": (
        "distill.epochs=12", "distill.patience=1", "distill.learning_rate=0.2", "distill.checkpoint_every=14",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_kill_after_the_last_step_trains_no_further(case, tiny, taught, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    sets = CASES[case]
    facts = run(tiny, taught, tmp_path / "whole", *sets)
    assert (facts["steps"] < facts["max_steps"]) == (case == "early stop")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(student, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, taught, tmp_path / "broken", *sets)
    checkpoints = tmp_path / "broken" / "scratch"
    assert (checkpoints / f"checkpoint-{facts['steps']}" / trainer.COMPLETE).is_file()
    again = run(tiny, taught, tmp_path / "broken", *sets)
    assert again["steps"] == facts["steps"]
    same_bytes(tmp_path / "broken", tmp_path / "whole")


def test_kill_9_in_the_middle_of_a_save(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run(tiny, taught, tmp_path / "whole")
    broken = tmp_path / "broken"
    broken.mkdir()
    parents = [str(taught.steps[name].path) for name in ("data", "teach")]
    child = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_SAVE, *parents, str(broken), tiny.recipe],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    assert (broken / "scratch" / "checkpoint-20" / "optimizer.pt").read_bytes() == b"half of it"
    assert (broken / "scratch" / "checkpoint-10" / trainer.COMPLETE).is_file()
    run(tiny, taught, broken)
    same_bytes(broken, tmp_path / "whole")
