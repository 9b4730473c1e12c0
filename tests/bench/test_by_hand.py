"""A device that cannot be plugged in: its folder is carried, answered with a shell, and read by the same command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_bench import run

from edgekd import measurement
from edgekd.bench import devices
from edgekd.bench.transports import file
from edgekd.bench.transports._contract import Waiting


def profile(folder: Path, python: str = sys.executable) -> Path:
    path = folder / "far.yaml"
    path.write_text(
        "name: far\ntransport: file\nrunner: linux/python/edgekd_runner.py\nruntimes: [onnx]\n"
        f"python: {python}\noptions: {{folder: {folder / 'there and back'}}}\n"
    )
    return path


def test_questions_are_written_answered_elsewhere_and_read(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32"), "onnx-w8a8": export("onnx", "w8a8")}
    asked = f"bench.devices=[{profile(tmp_path)}]"
    facts, _ = run(parents, tmp_path / "out", asked)
    folder = tmp_path / "there and back"
    assert all("waits for its answers" in row["error"] and "run.sh" in row["error"] for row in facts["summaries"])
    questions = sorted(folder.glob("jobs/*.jsonl"))
    assert (folder / "models" / "onnx-fp32.onnx").is_file() and (folder / "runner").is_file()

    carried = tmp_path / "elsewhere"
    shutil.copytree(folder, carried)
    (folder / "models" / "onnx-fp32.onnx").unlink()  # nothing is read from here
    done = subprocess.run(["sh", str(carried / "run.sh")], capture_output=True, text=True, timeout=300, check=True)
    assert len(done.stdout.splitlines()) == len(questions)
    shutil.copytree(carried / "answers", folder / "answers")

    facts, _ = run(parents, tmp_path / "out", asked)
    for row in facts["summaries"]:
        assert row["error"] is None and row["runs"] == 30 and row["golden"]["agreement"] == 1
    lines = measurement.read(tmp_path / "out" / "measurements.jsonl")
    assert lines[0].environment["cores"] and len(lines[0].latency_ns) == 3
    assert sorted(folder.glob("jobs/*.jsonl")) == questions  # nothing was asked again


def test_a_changed_question_is_asked_again(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32")}
    asked = f"bench.devices=[{profile(tmp_path)}]"
    run(parents, tmp_path / "out", asked)
    folder = tmp_path / "there and back"
    subprocess.run(["sh", str(folder / "run.sh")], capture_output=True, timeout=300, check=True)
    facts, _ = run(parents, tmp_path / "out", asked, "bench.min_runs=60")
    assert {row["error"] is None for row in facts["summaries"]} == {False}
    said = subprocess.run(["sh", str(folder / "run.sh")], capture_output=True, text=True, timeout=300, check=True)
    assert len(said.stdout.splitlines()) == 6  # three blocks at two lengths; the rest is answered
    facts, _ = run(parents, tmp_path / "out", asked, "bench.min_runs=60")
    assert [row["runs"] for row in facts["summaries"]] == [60, 60]


def test_what_breaks_there_is_told_here(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32", content=b"no model")}
    asked = f"bench.devices=[{profile(tmp_path)}]"
    run(parents, tmp_path / "out", asked)
    subprocess.run(["sh", str(tmp_path / "there and back" / "run.sh")], capture_output=True, timeout=300, check=True)
    facts, _ = run(parents, tmp_path / "out", asked)
    assert all("the runner failed" in row["error"] for row in facts["summaries"])


def test_names_do_not_reach_the_shell_unquoted(tmp_path: Path) -> None:
    device = devices.Device(name="far", transport="file", runner="native", options={"folder": str(tmp_path / "f")})
    transport: Any = file.connect(device)
    argv = ["printf", "%s", "$(touch hurt); `touch hurt` 'x'"]
    with pytest.raises(Waiting):
        transport.exec(argv, stdin=b"", timeout=1)
    subprocess.run(["sh", str(tmp_path / "f" / "run.sh")], capture_output=True, timeout=60, check=True)
    assert not list(tmp_path.rglob("hurt"))
    again: Any = file.connect(device)
    assert again.exec(argv, stdin=b"", timeout=1).stdout == argv[-1].encode()
