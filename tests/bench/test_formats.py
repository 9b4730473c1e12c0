"""Formats for other tools: read back by their own rules, and against what made them."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgekd import measurement
from edgekd.bench import formats
from edgekd.errors import BadInput
from edgekd.measurement import Measurement

GOOD = Measurement(
    target="onnx",
    scheme="w8a8",
    artifact="d" * 64,
    device="local",
    runtime="onnx",
    threads=2,
    tokens=14,
    requested={"threads": 2, "length": "p50", "texts": 8, "cpu_affinity": None, "warmup_runs": 5, "blocks": 2},
    observed={"threads": 2, "backend": "CPUExecutionProvider", "tokens": [14], "energy_uj": 1500.0},
    load_ns=(5_000_000, 6_000_000, 7_000_000),
    first_inference_ns=(4_000_000,),
    warmup={"runs": 5, "seconds": 0.1},
    latency_ns=((1_000_000, 1_100_000, 1_200_000), (1_000_000, 1_200_000, 1_400_000)),
    blocks=({"position": 0, "cpu_ns": 6_000_000}, {"position": 1, "cpu_ns": 7_200_000}),
    memory={"peak_above_bytes": 9_000_000, "peak_reset": True},
    environment={"cores": 4, "time": "2026-01-02T03:04:05Z", "os": "Linux", "load_average_before": [0.5, 0.4, 0.3]},
    flags=("unstable",),
)
CRASHED = Measurement(
    **{**vars(GOOD), "latency_ns": (), "scheme": "fp32", "error": "killed by | signal 11", "flags": ()}
)
EMULATED = Measurement(**{**vars(GOOD), "device": "emulated-pixel", "flags": ("emulated",)})


def test_google_benchmark() -> None:
    found = formats.google_benchmark([GOOD, CRASHED, EMULATED], version="0.3")
    json.dumps(found, allow_nan=False)
    context = found["context"]
    assert context["num_cpus"] == 4 and context["date"] and context["edgekd_version"] == "0.3"
    assert context["failed"]["onnx-fp32/local/threads:2/p50"] == "killed by | signal 11"
    assert len(context["failed"]) == 2
    [case] = found["benchmarks"]
    assert case["name"] == "onnx-w8a8/local/threads:2/p50"
    assert (case["real_time"], case["time_unit"], case["iterations"]) == (1.15, "ms", 6)
    assert case["cpu_time"] == pytest.approx(2.2) and case["threads"] == 2
    assert case["label"] == "CPUExecutionProvider; unstable"
    assert case["p90_ms"] == pytest.approx(np.percentile(GOOD.samples_ns(), 90) / 1e6)
    assert (case["load_ms"], case["first_ms"], case["peak_mb"], case["energy_mj"]) == (6, 4, 9, 1.5)


def test_the_action_that_draws_benchmarks_finds_its_fields() -> None:
    """github-action-benchmark, tool googlecpp: name, real_time, time_unit, and iterations, cpu_time, threads beside."""
    for case in formats.google_benchmark([GOOD])["benchmarks"]:
        assert isinstance(case["name"], str) and case["time_unit"] in {"ns", "us", "ms", "s"}
        assert all(isinstance(case[key], int | float) and case[key] > 0 for key in ("real_time", "cpu_time"))
        assert all(isinstance(case[key], int) for key in ("iterations", "threads"))
    silent = Measurement(**{**vars(GOOD), "blocks": ({"position": 0},), "memory": {}, "load_ns": (), "observed": {}})
    [case] = formats.google_benchmark([silent])["benchmarks"]
    assert case["cpu_time"] == case["real_time"] and "peak_mb" not in case and "load_ms" not in case
    assert formats.google_benchmark([])["benchmarks"] == []


def test_csv_reads_back() -> None:
    text = formats.csv_text([GOOD, CRASHED])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == formats.COLUMNS and text.endswith("\r\n")
    assert (rows[0]["p50_ms"], rows[0]["runs"], rows[0]["flags"], rows[0]["error"]) == ("1.15", "6", "unstable", "")
    assert float(rows[0]["p50_low_ms"]) <= 1.15 <= float(rows[0]["p50_high_ms"])
    assert rows[1]["p50_ms"] == "" and rows[1]["error"] == "killed by | signal 11" and rows[1]["runs"] == "0"


def test_csv_runs_nothing_in_a_spreadsheet() -> None:
    one = Measurement(**{**vars(CRASHED), "error": '=cmd|"x"!A1\nnext line', "device": "@pixel"})
    [row] = csv.DictReader(io.StringIO(formats.csv_text([one]), newline=""))
    assert row["error"] == '\'=cmd|"x"!A1\nnext line' and row["device"] == "'@pixel"


def test_markdown_is_a_table() -> None:
    text = formats.markdown([GOOD, CRASHED, EMULATED])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [line.replace("\\|", "").count("|") for line in lines]
    assert len(lines) == 5 and len(set(cells)) == 1
    assert "1.15 *" in lines[2] and "killed by \\| signal 11" in lines[3]
    assert "numerics only, not latency" in lines[4] and "1.15" not in lines[4]
    assert "\\* unstable: stability score" in text


VERDICTS: dict[str, Any] = {
    "onnx-w8a8": {
        "verdict": "fail",
        "reasons": ["size in MB is 9, wanted 5"],
        "checks": [
            {"name": "golden outputs", "value": 0.01, "limit": 0.5, "passed": True, "note": "largest"},
            {
                "name": "size in MB",
                "value": 9.0,
                "limit": 5.0,
                "passed": False,
                "note": "a\x00b <&> \x1b[31m\ud800 \U0001f600",
            },
            {"name": "latency", "value": None, "limit": "not slower", "passed": None, "note": "not measured"},
            {"name": "p50 in ms", "value": None, "limit": 2.0, "passed": None, "note": ""},
        ],
    },
    "litert-w8a8": {"verdict": "failed", "checks": [], "reasons": ["killed by signal 11"]},
    "onnx-fp32": {"verdict": "pass", "checks": [], "reasons": []},
}


def test_junit() -> None:
    text = formats.junit(VERDICTS, suite="run")
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites" and root.get("name") == "run"
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "1",
        "errors": "1",
        "skipped": "2",
    }
    onnx, litert, fp32 = root.findall("testsuite")
    cases = {case.get("name"): case for case in onnx.findall("testcase")}
    assert set(cases) == {"golden outputs", "size in MB", "latency", "p50 in ms"}
    assert onnx.get("failures") == "1" and onnx.get("skipped") == "2"
    assert {case.get("classname") for case in cases.values()} == {"onnx-w8a8"}
    failure = cases["size in MB"].find("failure")
    assert failure is not None and failure.get("message") == "size in MB is 9, wanted 5"
    assert failure.text is not None and "a�b <&> �[31m� \U0001f600" in failure.text
    skipped = cases["latency"].find("skipped")
    assert skipped is not None and skipped.get("message") == "not measured"
    assert cases["golden outputs"].find("failure") is None and cases["golden outputs"].find("skipped") is None
    error = litert.find("testcase/error")
    assert error is not None and error.get("message") == "killed by signal 11"
    assert len(fp32.findall("testcase")) == 1 and fp32.get("errors") == fp32.get("failures") == "0"
    assert ElementTree.fromstring(formats.junit({})).get("tests") == "0"


def test_junit_takes_what_the_gate_says() -> None:
    from edgekd.recipe import Gate
    from edgekd.verify import gate

    verify = {
        "samples": 10,
        "of": 10,
        "metrics": {"accuracy": 0.8},
        "student_metrics": {"accuracy": 0.9},
        "teacher_metrics": {"accuracy": 0.9},
        "golden": {"max_abs_delta": 0.1, "bound": 0.5, "passed": True},
        "agreement": {"program": 0.99, "teacher": 0.9},
    }
    verdict = gate.judge(Gate(), "accuracy", verify, {"scheme": "w8a8", "size_bytes": 10}, None)
    root = ElementTree.fromstring(formats.junit({"onnx-w8a8": verdict}))
    assert int(root.get("failures", "")) == len(verdict["reasons"]) > 0
    assert int(root.get("tests", "")) == len(verdict["checks"])


# --- the schema ---


def line(**change: Any) -> dict[str, Any]:
    return {**json.loads(measurement.to_line(GOOD)), **change}


def valid(document: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(formats.measurement_schema()).is_valid(document))


def test_the_schema_takes_real_lines() -> None:
    jsonschema.Draft202012Validator.check_schema(formats.measurement_schema())
    for one in (GOOD, CRASHED):
        jsonschema.validate(json.loads(measurement.to_line(one)), formats.measurement_schema())
    names = {"schema", *(json.loads(measurement.to_line(GOOD)))}
    assert names <= set(formats.measurement_schema()["properties"])


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgekd/measurement/9"},
        {"latency_ns": [[1, -2]]},
        {"latency_ns": [[1.5]]},
        {"latency_ns": [1, 2]},
        {"load_ns": None},
        {"threads": 0},
        {"threads": True},
        {"target": None},
        {"flags": ["looks_fine"]},
        {"flags": "unstable"},
        {"latency_ns": []},
        {"latency_ns": [[]]},
        {"error": 5},
        {"memory": []},
        {"colour": "red"},
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(change: dict[str, Any]) -> None:
    document = line(**change)
    with pytest.raises(BadInput):
        measurement.from_line(json.dumps(document))
    assert not valid(document)


def test_missing_fields() -> None:
    document = line()
    del document["device"]
    assert not valid(document) and valid(line(latency_ns=[], error="it crashed"))
    least = {name: line()[name] for name in formats.measurement_schema()["required"]}
    assert not valid(least) and valid({**least, "latency_ns": [[1]]})
