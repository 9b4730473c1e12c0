"""One recipe on four devices at once: this machine, a board over SSH, a phone-like board over ADB, and a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from _emulated import OWN
from _native import build
from _texts import Texts
from test_arm_board import Board, board
from test_browser import needs_browser
from test_ssh import Server, server, started

from edgekd import measurement, outcome, pipeline, recipe
from edgekd.bench.devices import Device

__all__ = ["board", "server", "started"]  # fixtures


def written(folder: Path, name: str, device: Device, **change: Any) -> str:
    """A profile as a file of its own, as a user has it."""
    plain = {**device.model_dump(mode="json", exclude_defaults=True), "name": name, "runtimes": ["onnx"], **change}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain))
    return str(folder / f"{name}.yaml")


@needs_browser
@pytest.mark.slow
def test_one_recipe_on_four_devices(board: Board, server: Server, tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    names = [
        "local",
        "chromium",
        written(tmp_path, "ssh-loopback", server.profile()),
        written(tmp_path, "adb-emulated", board.profile("adb"), emulated=True),
    ]
    loaded = recipe.parse(tiny.recipe, overrides=[f"bench.devices={json.dumps(names)}", "bench.verify=test"])
    result = pipeline.run(loaded, tmp_path / "run")
    facts = pipeline.bench(result).facts
    report = outcome.report(result)

    rows = [row for row in facts["summaries"] if row["target"] == "onnx"]
    assert {(row["device"], row["scheme"]) for row in rows} == {
        (device, scheme)
        for device in ("local", "ssh-loopback", "adb-emulated", "chromium")
        for scheme in ("fp32", "w8a8")
    }
    for row in rows:
        assert row["error"] is None, row
        assert row["golden"]["agreement"] == 1 and row["test"]["samples"] == 90
        assert row["test"]["agreement"] == 1, (row["device"], row["test"])
        assert row["emulated"] == (row["device"] == "adb-emulated") == ("emulated" in row["flags"])
    quantized = {row["device"]: row["golden"]["max_abs_delta"] for row in rows if row["scheme"] == "w8a8"}
    assert max(quantized.values()) < 1e-5, quantized  # integers are integers on every processor
    assert outcome.exit_code(result) == 0, report
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(name in page for name in ("ssh-loopback", "adb-emulated", "chromium", "numerics only, not latency"))
    checks = {check["name"] for verdict in outcome.verdicts(result).values() for check in verdict["checks"]}
    assert {"golden outputs on adb-emulated", "golden outputs on chromium", "golden outputs on ssh-loopback"} <= checks
    lines = measurement.read(tmp_path / "run" / "bench" / "measurements.jsonl")
    machines = {one.device: one.environment.get("machine") for one in lines}
    assert machines["adb-emulated"] == "aarch64" and machines["ssh-loopback"] == machines["local"]


@needs_browser
@pytest.mark.slow
def test_one_student_that_writes_on_five_devices(board: Board, server: Server, tmp_path: Path) -> None:
    """Python and C++ here, Python over SSH, C++ on emulated ARM over ADB, WebAssembly: what the Program writes."""
    names = [
        "local",
        "local-native",
        "chromium",
        written(tmp_path, "ssh-loopback", server.profile()),
        written(tmp_path, "adb-emulated", board.profile("adb"), emulated=True),
    ]
    build("onnx", OWN)
    build("onnx", "aarch64")
    made = Texts(tmp_path)
    facts = made.bench([made.export("onnx")], tmp_path / "bench", ", ".join(names), student=made.program)
    rows = facts["summaries"]
    assert {row["device"] for row in rows} == {Path(name).stem for name in names}
    for row in rows:
        assert row["error"] is None, row
        assert row["golden"]["differ"] == 0 and row["golden"]["equal"] > 0
        assert row["tokens_per_second"] > 0 and row["load_ms"] > 0 and row["peak_mb"] > 0
        assert ("emulated" in row["flags"]) == (row["device"] == "adb-emulated")
    machines = {name: around["machine"] for name, around in facts["environments"].items() if "machine" in around}
    assert machines["adb-emulated"] == "aarch64" and machines["ssh-loopback"] == machines["local"]
