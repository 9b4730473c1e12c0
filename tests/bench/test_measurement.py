"""A measurement line: what goes in comes out, and what is wrong is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekd import measurement
from edgekd.errors import BadInput
from edgekd.measurement import Measurement

GOOD = Measurement(
    target="onnx",
    scheme="w8a8",
    artifact="d" * 64,
    device="local",
    runtime="onnx",
    threads=1,
    tokens=14,
    requested={"threads": 1},
    observed={"threads": 1, "backend": "CPUExecutionProvider"},
    load_ns=(5, 6),
    first_inference_ns=(7,),
    warmup={"runs": 5, "seconds": 0.1},
    latency_ns=((10, 11), (12,)),
    blocks=({"position": 0}, {"position": 1}),
    memory={"peak_bytes": 9},
    flags=("unstable",),
)


def test_a_measurement_survives_its_line(tmp_path: Path) -> None:
    failed = Measurement(**{**vars(GOOD), "latency_ns": (), "error": "the runner was killed by signal 11"})
    measurement.write(tmp_path / "m.jsonl", [GOOD, failed])
    assert measurement.read(tmp_path / "m.jsonl") == [GOOD, failed]
    assert GOOD.samples_ns() == [10, 11, 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "edgekd/measurement/9"}, "schema"),
        ({"latency_ns": [[1, -2]]}, "nanoseconds"),
        ({"latency_ns": [[1.5]]}, "nanoseconds"),
        ({"latency_ns": [1, 2]}, "lists"),
        ({"load_ns": None}, "lists"),
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"target": None}, "target"),
        ({"flags": ["looks_fine"]}, "looks_fine"),
        ({"flags": "unstable"}, "flags"),
        ({"latency_ns": []}, "neither samples nor an error"),
        ({"latency_ns": [[]]}, "neither samples nor an error"),
        ({"error": 5}, "error"),
        ({"memory": []}, "memory"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_line_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("\n" + json.dumps({**json.loads(measurement.to_line(GOOD)), **change}) + "\n")
    with pytest.raises(BadInput, match=message) as error:
        measurement.read(tmp_path / "m.jsonl")
    assert "m.jsonl:2" in str(error.value)


def test_broken_json_and_missing_fields_are_refused(tmp_path: Path) -> None:
    for text in ('{"schema": ', "[]", "3", '{"schema": "edgekd/measurement/1", "target": "onnx"}'):
        with pytest.raises(BadInput):
            measurement.from_line(text)
    with pytest.raises(BadInput, match="no such file"):
        measurement.read(tmp_path / "none.jsonl")


def test_nan_never_reaches_a_file() -> None:
    with pytest.raises(ValueError, match="JSON"):
        measurement.to_line(Measurement(**{**vars(GOOD), "observed": {"share": float("nan")}}))
