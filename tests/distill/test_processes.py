"""The same command in two processes: data parallel (``torchrun``), and sharded (``accelerate launch`` with FSDP)."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _language import LINES, model_of, tokenizer
from _material import ROOT, in_two_processes
from safetensors.torch import load_file

from edgekd import artifact, pipeline, processes, recipe
from edgekd.distill.trainer import Keeper
from edgekd.errors import BadInput, Environment
from edgekd.teach.cache import FOLDER, SAMPLES, Cache

SHARDED = "fsdp_state_dict_type: SHARDED_STATE_DICT"
TEXT: dict[str, Any] = {
    "task": "text-generation",
    "quantize": {"schemes": ["w8"]},
    "export": {"targets": ["onnx"]},
    "distill": {
        "student": {"layers": 1}, "max_steps": 30, "batch_size": 8, "learning_rate": 3e-3, "temperature": 1.0,
        "evaluate_every": 0.5, "checkpoint_every": 10, "baseline": False,
    },
}  # fmt: skip


def under_fsdp(recipe: Path, run: Path, *, killed: int | None = None, state: str = SHARDED) -> Any:
    """What ``edgekd distill --json`` prints under ``accelerate launch`` with the config file of the guide."""
    guide = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(# fsdp.yaml.*?)```", guide, re.DOTALL)
    assert found and SHARDED in found[1]
    config = run.parent / "fsdp.yaml"
    config.write_text(found[1].replace(SHARDED, state))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    command += ["--main_process_port", str(port), str(ROOT / "tests" / "_sharded.py")]
    command += ["distill", str(recipe), "--run-dir", str(run), "--json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if killed:
        environment["EDGEKD_TEST_KILLED"] = str(killed)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode == 0) == (killed is None), done.stderr[-3000:]
    return None if killed else json.loads(done.stdout)


def half_each(run: Path, step: str = "distill-student") -> int:
    """How many groups of parameters there were; fails where a process held more than its half."""
    first, second = (json.loads((run / f"held-{step}-{rank}.json").read_text()) for rank in (0, 1))
    assert first["held"] + second["held"] == first["numbers"] == second["numbers"]
    assert 0.45 < first["held"] / first["numbers"] < 0.55
    return int(first["groups"])


def step_of(run: Path, step: str = "distill-student") -> Path:
    return next(path for path in (run / "steps").glob(f"{step}-*") if (path / "manifest.json").is_file())


def same(one: Path, other: Path) -> None:
    """The students' weights and the logged losses, within rounding: sums of the same two parts in another order.

    Not a bias of keys: softmax does not see it, so its gradient is noise, and Adam makes a step of any noise.
    """
    mine, theirs = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    histories = (json.loads((path / "history.json").read_text()) for path in (one, other))
    for before, after in zip(*histories, strict=True):
        kept = {name for name in before if not name.endswith("_gradient_share")}  # not measured under FSDP
        assert kept == after.keys()
        assert {name: after[name] for name in kept} == pytest.approx({name: before[name] for name in kept}, rel=1e-4)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe for a language model with one matrix for words and head."""
    folder = tmp_path_factory.mktemp("text")
    model_of("qwen3", tokenizer(folder / "teacher")).save_pretrained(folder / "teacher")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line * 3}) + "\n" for line in LINES))
    data = {"train": str(folder / "text.jsonl"), "max_length": 48}
    return TEXT | {"teacher": {"model": str(folder / "teacher")}, "data": data, "teach": {"tokens": "top:16"}}


@pytest.fixture(scope="module")
def parallel(tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:  # type: ignore[no-untyped-def]
    """A folder with a recipe and its run in two processes, and what that said.

    A projection is learned: it is in no layer of the student, and trained by all processes too.
    """
    folder = tmp_path_factory.mktemp("parallel")
    losses = "losses: [{loss: forward-kl}, {loss: hidden-mse, pool: mean}, {loss: minilm, heads: 2}]"
    student = "{layers: 1, hidden_size: 24}\n  patience: 100\n  baseline: false\n  " + losses
    text = tiny.recipe.replace("{layers: 1}", student).replace("epochs: 3", "epochs: 4").replace("2.0e-3", "4.0e-3")
    (folder / "recipe.yaml").write_text(text)
    return folder, in_two_processes("distill", folder / "recipe.yaml", folder / "run", 300)


def test_two_processes_share_teacher_and_training(parallel: tuple[Path, Any], tmp_path: Path) -> None:
    folder, told = parallel
    alone = pipeline.run(recipe.parse((folder / "recipe.yaml").read_text()), tmp_path, until="distill")
    one, two = alone.facts("distill-student"), told["steps"]["distill-student"]
    assert one and two["steps"] == one["steps"]
    assert (one["processes"], two["processes"]) == (1, 2) and "sharded" not in two
    assert abs(one["metrics"]["test"]["accuracy"] - two["metrics"]["test"]["accuracy"]) < 0.1
    teach = step_of(folder / "run", "teach")
    assert artifact.load(teach).facts["processes"] == 2
    samples = artifact.read_json(teach / SAMPLES)
    store = Cache(teach / FOLDER, samples["identity"])  # refuses a sample that two shards hold
    assert len(store) == len({one for ids in samples["splits"].values() for one in ids})
    assert not list((folder / "run" / "steps").glob("*.partial"))


def test_a_sharded_student_is_that_of_data_parallel_training(parallel: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = parallel
    told = under_fsdp(folder / "recipe.yaml", tmp_path / "run", state="fsdp_state_dict_type: FULL_STATE_DICT")
    facts = told["steps"]["distill-student"]
    assert facts["sharded"] and facts["processes"] == 2
    assert half_each(tmp_path / "run") == 3  # embeddings, the layer, the rest
    same(step_of(folder / "run"), step_of(tmp_path / "run"))


@pytest.mark.slow
def test_a_sharded_language_model_goes_on_after_a_kill(text: dict[str, Any], tmp_path: Path) -> None:
    """Its words and head are one matrix; the optimizer's state goes on too: the same bytes as without the kill."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(text))
    for name in ("parallel", "whole", "killed"):
        (tmp_path / name).mkdir()
    under_fsdp(tmp_path / "recipe.yaml", tmp_path / "whole" / "run")
    assert half_each(tmp_path / "whole" / "run") == 2
    under_fsdp(tmp_path / "recipe.yaml", tmp_path / "killed" / "run", killed=20)
    (scratch,) = (tmp_path / "killed" / "run" / "steps").glob("distill-student-*.partial/scratch")
    assert (scratch / "checkpoint-10" / "COMPLETE").is_file() and (scratch / "checkpoint-20").is_dir()
    assert not (scratch / "checkpoint-20" / "COMPLETE").exists()
    under_fsdp(tmp_path / "recipe.yaml", tmp_path / "killed" / "run")
    whole, again = (step_of(tmp_path / name / "run") for name in ("whole", "killed"))
    for name in ("model/model.safetensors", "history.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name
    in_two_processes("distill", tmp_path / "recipe.yaml", tmp_path / "parallel" / "run", 300)
    same(step_of(tmp_path / "parallel" / "run"), whole)


@pytest.mark.slow
def test_a_teacher_beside_a_sharded_student_is_whole(text: dict[str, Any], tmp_path: Path) -> None:
    """Online, hidden states of another width, and layers that are computed again in the backward pass."""
    narrow = model_of(
        "qwen3", tokenizer(tmp_path / "narrow"), num_hidden_layers=1, hidden_size=32, num_attention_heads=2
    )
    narrow.save_pretrained(tmp_path / "narrow")
    terms = [{"loss": "forward-kl", "pool": "output"}, {"loss": "hidden-mse", "layers": "last", "pool": "none"}]
    student = {"student": {"model": str(tmp_path / "narrow")}, "gradient_checkpointing": True, "losses": terms}
    made = text | {"teach": {"online": True}, "distill": text["distill"] | student}
    (tmp_path / "recipe.yaml").write_text(json.dumps(made))
    under_fsdp(tmp_path / "recipe.yaml", tmp_path / "sharded")
    half_each(tmp_path / "sharded")
    in_two_processes("distill", tmp_path / "recipe.yaml", tmp_path / "parallel", 300)
    same(step_of(tmp_path / "parallel"), step_of(tmp_path / "sharded"))


def test_what_fsdp_is_not_used_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = object.__new__(Keeper)
    whole = torch.nn.Linear(2, 2)
    keeper.on_train_begin(None, None, None, model=whole)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(Environment, match="has not"):
        keeper.on_train_begin(None, None, None, model=whole)
    with pytest.raises(BadInput, match="FSDP 1"):
        processes.begin()
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    processes.begin()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
