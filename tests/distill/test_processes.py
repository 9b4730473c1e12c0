"""The same command under ``accelerate launch``: two processes, one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from edgekd import artifact, pipeline, recipe
from edgekd.teach.cache import FOLDER, SAMPLES, Cache

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_share_teacher_and_training(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = tiny.recipe.replace("epochs: 3", "epochs: 4")
    (tmp_path / "recipe.yaml").write_text(text)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "--mixed_precision"]
    command += ["no", "--num_machines", "1", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "edgekd"]
    command += ["distill", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "two"), "--json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)  # one process speaks
    alone = pipeline.run(recipe.parse(text), tmp_path / "one", until="distill")
    one, two = alone.facts("distill-student"), told["steps"]["distill-student"]
    assert one and two["steps"] == one["steps"]
    assert abs(one["metrics"]["test"]["accuracy"] - two["metrics"]["test"]["accuracy"]) < 0.1
    teach = next((tmp_path / "two" / "steps").glob("teach-*"))
    samples = artifact.read_json(teach / SAMPLES)
    store = Cache(teach / FOLDER, samples["identity"])  # refuses a sample that two shards hold
    assert len(store) == len({one for ids in samples["splits"].values() for one in ids})
    assert not list((tmp_path / "two" / "steps").glob("*.partial"))
