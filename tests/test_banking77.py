"""The first example on its real teacher and data (skipped where they are absent): `make test-all`."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_banking77_ships_in_a_shorter_form(banking77: dict[str, Path], edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Two epochs, no baseline, two targets: the numbers of the issue hold already."""
    values = {
        "teacher.model": banking77["teacher"],
        "data.train": banking77["train"],
        "data.test": banking77["test"],
        "distill.epochs": 2,
        "distill.baseline": "false",
        "quantize.steps": 50,
        "export.targets": "[onnx, litert]",
    }
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    recipe = ROOT / "examples" / "banking77.yaml"
    said = edgekd("ship", recipe, "--run-dir", tmp_path / "run", *sets, "--no-bench", "--json", timeout=2900)
    assert said.code == 0, said.err[-3000:]
    report = said.json
    assert report["teacher"]["metrics"]["accuracy"] == pytest.approx(0.9305, abs=1e-3)
    assert report["student"]["metrics"]["accuracy"] >= 0.96 * report["teacher"]["metrics"]["accuracy"]
    sizes = {(a["target"], a["scheme"]): a["size_bytes"] for a in report["artifacts"]}
    for entry in report["artifacts"]:
        assert entry["verdict"] == "pass", entry["reasons"]
        assert entry["samples"] == {"verified": 3080, "of": 3080}
        assert entry["metrics"]["accuracy"] >= report["student"]["metrics"]["accuracy"] - 0.01
        assert entry["agreement"]["program"] >= 0.99
        assert sizes[entry["target"], "w8a8"] <= 0.30 * sizes[entry["target"], "fp32"]
