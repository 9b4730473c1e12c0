"""The examples of the other tasks on real data, in a shorter form (skipped where the data are absent): `make test-all`.

The figures of the whole recipes are in docs/distillation.md; a few minutes show that the way is sound. Teachers that
do not exist are made by examples/make_teacher.py first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _material import ROOT, SHARED

BASE = SHARED / "teachers" / "banking77-minilm-l6"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def data(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists() or not BASE.is_dir():
        pytest.skip(f"no {name} or teacher under {SHARED} (set EDGEKD_SHARED)")
    return path


def make_teacher(example: str, out: Path, *options: str | Path) -> Path:
    command = [sys.executable, str(ROOT / "examples" / "make_teacher.py"), example, str(out), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, timeout=1500, env=environment)
    return out


def ship(edgekd: Any, example: str, folder: Path, **values: object) -> dict[str, Any]:
    fixed = {"distill.baseline": "false", "quantize.steps": 20, "export.targets": "[onnx]", "gate.not_slower": "false"}
    sets = [part for name, value in {**fixed, **values}.items() for part in ("--set", f"{name}={value}")]
    said = edgekd(
        "ship", ROOT / "examples" / f"{example}.yaml", "--run-dir", folder, *sets, "--no-bench", "--json", timeout=2900
    )
    assert said.code in (0, 1), said.err[-3000:]
    return said.json  # type: ignore[no-any-return]


def artifacts_follow(report: dict[str, Any], headline: str, ratio: float) -> None:
    """Every file answers as its Program does, and keeps ``ratio`` of the teacher."""
    for entry in report["artifacts"]:
        assert entry["agreement"]["program"] >= 0.98, entry["reasons"]
        assert entry["metrics"][headline] >= ratio * report["teacher"]["metrics"][headline], entry["reasons"]


def test_digits(edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    table = data("digits") / "digits.npz"
    train, test = f"{table}:train", f"{table}:test"
    teacher = make_teacher("digits", tmp_path / "teacher", "--train", train, "--test", test)
    report = ship(
        edgekd, "digits", tmp_path / "run", **{"teacher.model": teacher, "data.train": train, "data.test": test}
    )
    assert report["teacher"]["metrics"]["accuracy"] > 0.95
    artifacts_follow(report, "accuracy", 0.95)


def test_stsb(edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The classifier's encoder as it is, a teacher of 0.7: the student follows it."""
    folder = data("stsb")
    values = {f"data.{name}": folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    report = ship(edgekd, "stsb", tmp_path / "run", **{"teacher.model": BASE, **values}, **{"distill.epochs": 1})
    assert report["teacher"]["metrics"]["spearman"] > 0.65
    artifacts_follow(report, "spearman", 0.9)


def test_restaurant8k(edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder, teacher = data("restaurant8k"), SHARED / "teachers" / "restaurant8k-minilm-l6-tokcls"
    values = {
        "teacher.model": teacher,
        "data.train": folder / "train.jsonl",
        "data.test": folder / "test.jsonl",
        "distill.epochs": 4,
    }
    report = ship(edgekd, "restaurant8k", tmp_path / "run", **values)
    assert report["teacher"]["metrics"]["span_f1"] == pytest.approx(0.9406, abs=2e-3)
    artifacts_follow(report, "span_f1", 0.93)
    assert all(one["size_bytes"] <= 3e6 for one in report["artifacts"] if one["scheme"] == "w8a8")


def test_squad(edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """An hour makes a useful teacher; two minutes make one whose windows, spans and files can be followed."""
    folder = data("squad_v1_dev")
    train, test = folder / "train.jsonl", folder / "validation.jsonl"
    options = ("--train", train, "--test", test, "--base", BASE, "--limit", "100", "--minutes", "2")
    teacher = make_teacher("squad", tmp_path / "teacher", *options)
    values = {"teacher.model": teacher, "data.train": train, "data.test": test, "data.limit": 100, "distill.epochs": 1}
    report = ship(edgekd, "squad", tmp_path / "run", **values)
    assert {"f1", "exact_match"} <= report["teacher"]["metrics"].keys()
    for entry in report["artifacts"]:
        assert entry["agreement"]["program"] >= 0.9, entry["reasons"]


def test_a_small_banking77_student(edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """0.3 MB in a tenth of the recipe's steps and with fewer copies."""
    folder = data("banking77")
    values = {
        "teacher.model": BASE,
        "data.train": folder / "train.csv",
        "data.test": folder / "test.csv",
        "data.augment.copies": 2,
        "distill.max_steps": 3000,
    }
    report = ship(edgekd, "banking77-tiny", tmp_path / "run", **values)
    (small,) = (one for one in report["artifacts"] if one["scheme"] == "w8a8")
    assert small["size_bytes"] <= 300_000
    assert small["metrics"]["accuracy"] >= 0.93 * report["teacher"]["metrics"]["accuracy"]
