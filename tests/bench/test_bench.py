"""The bench stage on real processes: all is measured, and what crashes, hangs or is missing does not stop the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _embedding_sum import WORDS, write_small, write_tokenizer

from edgekd import artifact, measurement, recipe, registry
from edgekd.bench import harness, results, stage, statistics, subjects
from edgekd.errors import BadInput

READS = ("bench", "task", "data.max_length", "teacher.model")
SMALL = (
    "bench.min_runs=30",
    "bench.min_seconds=0",
    "bench.warmup_runs=2",
    "bench.warmup_seconds=0",
    "bench.cold_loads=1",
    "bench.blocks=3",
)


def run(parents: dict[str, artifact.Artifact], out: Path, *sets: str) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    out.mkdir(exist_ok=True)
    view: Any = recipe.View(recipe.parse("name: x\n", overrides=[*SMALL, *sets]), READS)
    inputs = artifact.Inputs(parents=parents, progress=lambda done, total, unit: seen.append((done, total)))
    return stage.run(view, inputs, out), seen


def test_everything_is_measured(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32"), "onnx-w8a8": export("onnx", "w8a8", fixed=True)}
    facts, seen = run(parents, tmp_path / "out")
    assert [(row["scheme"], row["tokens"], row["fed_tokens"]) for row in facts["summaries"]] == [
        ("fp32", 3, [3]),
        ("w8a8", 3, [12]),
        ("fp32", 9, [9]),
        ("w8a8", 9, [12]),
    ]
    for row in facts["summaries"]:
        assert row["error"] is None and row["runs"] == 30
        assert row["p50_ci_ms"][0] <= row["p50_ms"] <= row["p50_ci_ms"][1]
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["load_ms"] > 0 and row["first_ms"] > 0 and row["peak_mb"] > 0
        assert row["golden"]["samples"] == 2 and row["golden"]["agreement"] == 1
        assert row["golden"]["max_abs_delta"] < 1e-5
    assert [(row["tokens"], row["against"]) for row in facts["comparisons"]] == [(3, "fp32"), (9, "fp32")]
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)

    lines = measurement.read(tmp_path / "out" / "measurements.jsonl")
    assert [len(block) for block in lines[0].latency_ns] == [10, 10, 10]
    assert lines[0].artifact == parents["onnx-fp32"].digest
    assert lines[0].requested["backend"] == lines[0].observed["backend"] == "CPUExecutionProvider"
    assert lines[0].environment["cores"] and "load_average_before" in lines[0].environment
    orders = {tuple(line.blocks[n]["position"] for line in lines[:2]) for n in range(3)}
    assert orders <= {(0, 1), (1, 0)}


def test_each_subject_is_fed_by_its_own_tokenizer(data, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A student with a trimmed vocabulary has other ids than its teacher for the same words."""
    write_tokenizer(tmp_path, WORDS[::-1])
    task = registry.load("tasks", "text-classification")
    teacher, student = (
        subjects.Subject(name, "fp32", "", "torch", tmp_path, folder)
        for name, folder in (("teacher", data.path / "tokenizer"), ("student", tmp_path))
    )
    short, _ = subjects.choose_lengths(recipe.Recipe(), task, data.path, [teacher, student])
    theirs, mine = (short.rows[one.name] for one in (teacher, student))
    assert len(theirs) == len(mine) == 8 and set(mine[0]) == {"input_ids", "attention_mask"}
    last = len(WORDS) + 3  # the ids count from 2, in the other order
    assert [[last - token for token in row["input_ids"]] for row in theirs] == [row["input_ids"] for row in mine]


def test_the_student_is_its_program_and_gives_the_padding(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = dataclasses.replace(export("onnx", "fp32"), facts={"max_length": 9, "pad_token_id": 7})
    parents = {"data": data, "student": made, "onnx-w8a8": export("onnx", "w8a8", fixed=True)}
    settings = recipe.parse("name: x\nteacher: {model: some/teacher}\n")
    teacher, student, quantized = subjects.of_run(settings, artifact.Inputs(parents=parents))
    assert (teacher.model, teacher.processor) == ("some/teacher", data.path / "tokenizer")
    assert (student.model, student.processor) == (made.path / "program.pt2", made.path)
    assert quantized.job["pad_id"] == 7 and quantized.job["fixed_lengths"] == [
        12
    ]  # a trimmed vocabulary pads otherwise


def test_images_have_one_length(data, export, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    write_small(tmp_path / "image.onnx", "image")
    pixels_NCHW = np.random.default_rng(0).normal(size=(25, 3, 4, 5)).astype(np.float32)
    text = registry.load("tasks", "text-classification")
    images = SimpleNamespace(
        INPUTS=("pixel_values",),
        processor=lambda folder: folder,
        encode=lambda processor, examples, limit: [{"pixel_values": one, "size": 5} for one in pixels_NCHW][
            : len(examples)
        ],
        agree=text.agree,
    )
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda group, name: images if group == "tasks" else load(group, name))
    made = export("onnx", "fp32", content=(tmp_path / "image.onnx").read_bytes())
    signature = [{"name": "pixel_values", "dtype": "float32", "shape": [1, 3, 4, 5]}]
    golden = {
        "inputs": {"pixel_values": pixels_NCHW[:3].tolist()},
        "outputs": {"logits": pixels_NCHW[:3].mean((2, 3)).tolist()},
    }
    artifact.write_json(made.path / "golden.json", golden)
    facts = {**made.facts, "inputs": signature, "max_length": None}
    parents = {"data": data, "onnx-fp32": dataclasses.replace(made, facts=facts)}
    found, _ = run(parents, tmp_path / "out")
    [row] = found["summaries"]
    assert (row["length"], row["tokens"], row["fed_tokens"], row["error"]) == ("image", 1, [1], None)
    assert row["runs"] == 30 and row["golden"]["agreement"] == 1 and row["golden"]["max_abs_delta"] < 1e-5
    assert measurement.read(tmp_path / "out" / "measurements.jsonl")[0].requested["texts"] == 2


def test_what_breaks_is_told_and_the_rest_goes_on(data, export, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Stand-ins for vendors: one hangs when it is imported, one crashes; one file is no model; one has no runtime."""
    for name, body in (("ai_edge_litert", "import time; time.sleep(60)"), ("torch", "import os; os.abort()")):
        (tmp_path / "vendors" / name).mkdir(parents=True)
        (tmp_path / "vendors" / name / "__init__.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "vendors"))
    parents = {
        "data": data,
        "onnx-fp32": export("onnx", "fp32"),
        "onnx-w8a8": export("onnx", "w8a8", content=b"not a model"),
        "litert-fp32": export("litert", "fp32"),
        "executorch-fp32": export("executorch", "fp32"),
        "coreml-fp32": export("coreml", "fp32"),
    }
    facts, _ = run(parents, tmp_path / "out", "bench.timeout_seconds=4")
    errors = {(row["target"], row["scheme"]): row["error"] for row in facts["summaries"]}
    assert errors["onnx", "fp32"] is None
    assert "the runner failed" in errors["onnx", "w8a8"]
    assert "longer than 4 s" in errors["litert", "fp32"]
    assert "killed by signal 6" in errors["executorch", "fp32"]
    assert errors["coreml", "fp32"].startswith("not measured: no runtime 'coreml'")
    assert facts["comparisons"] == [] and len(facts["failed"]) == 4
    lines = measurement.read(tmp_path / "out" / "measurements.jsonl")
    assert sum(line.error is not None for line in lines) == 8  # four artefacts at two lengths
    assert all(row["p50_ms"] is None for row in facts["summaries"] if row["error"])


def test_an_unreachable_device_gives_errors_not_a_crash(data, export, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from edgekd.bench.transports import local
    from edgekd.errors import DeviceError

    def connect(device: Any) -> None:
        raise DeviceError("does not answer", where=device.name)

    monkeypatch.setattr(local, "connect", connect)
    facts, _ = run({"data": data, "onnx-fp32": export("onnx", "fp32")}, tmp_path / "out")
    assert {row["error"] for row in facts["summaries"]} == {"local: does not answer."}


def test_unknown_devices_and_empty_data_are_refused(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32")}
    with pytest.raises(BadInput, match="unknown device 'pixel'"):
        run(parents, tmp_path / "out", "bench.devices=[pixel]")
    (data.path / "test.jsonl").write_text("")
    with pytest.raises(BadInput, match="nothing to time"):
        run(parents, tmp_path / "out")


def _measured(**change: Any) -> measurement.Measurement:
    steady = {"latency_ns": ((100, 101, 102), (100, 101, 102)), "observed": {"threads": 1, "backend": "XNNPACK"}}
    requested = {"backend": "XNNPACK", "min_runs": 6, "length": "p50"}
    identity = {"target": "litert", "scheme": "fp32", "artifact": "a", "device": "local", "runtime": "litert"}
    made = {**identity, "threads": 1, "tokens": 3, "requested": requested, **steady, **change}
    return measurement.Measurement(**made)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"latency_ns": ((100, 101),)}, ["too_few_runs"]),
        ({"observed": {"threads": 1, "backend": "reference kernels"}}, ["backend_differs"]),
        ({"observed": {"threads": 4, "backend": "XNNPACK"}}, ["threads_differ"]),
        ({"observed": {"threads": 1, "others_share": 0.5}}, ["loaded_machine"]),
        ({"latency_ns": ((100, 900, 100), (100, 100, 900))}, ["unstable"]),
        ({"environment": {"governor": "powersave"}}, ["governor"]),
        ({"memory": {"peak_reset": False}}, ["memory_not_reset"]),
        ({"golden": {"agreement": 0.9}}, ["golden_differs"]),
        ({"observed": {"attention": "this runner's own"}}, ["own_attention"]),
        ({"latency_ns": (), "error": "it crashed"}, []),
    ],
)
def test_flags(change: dict[str, Any], expected: list[str]) -> None:
    assert results.flags(_measured(**change)) == expected
    assert set(expected) <= set(measurement.FLAGS)


def test_the_share_of_other_processes() -> None:
    second = 1_000_000_000
    block = {"wall_ns": second, "cpu_ns": second, "machine_busy_ns": 3 * second, "cpus": 4}
    assert results.others_share([block, block]) == 0.5
    assert results.others_share([{**block, "machine_busy_ns": None}]) is None
    assert results.others_share([{**block, "wall_ns": 1000}]) is None
    assert results.others_share([{**block, "machine_busy_ns": 0}]) == 0


def test_answers_that_are_none_are_refused() -> None:
    from edgekd.errors import DeviceError

    for stdout, code in ((b"", -11), (b"hello\n", 0), (b'{"schema": "other"}\n', 0)):
        with pytest.raises(DeviceError):
            harness.parsed(stdout, b"", code)
    assert harness.parsed(b'noise\n{"schema": "edgekd/runner/1"}\n', b"", 0)


def test_a_model_of_two_files_is_measured(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """OpenVINO finds the weights by the name of the graph; both lie on the device under the subject's name."""
    pytest.importorskip("openvino")
    vendor = registry.load("targets", "openvino")._openvino()
    made = export("openvino", "fp32")
    vendor.save_model(vendor.Core().read_model(str(made.path / "model.onnx")), str(made.path / "model.xml"))
    made = dataclasses.replace(made, facts={**made.facts, "file": "model.xml", "beside": ["model.bin"]})
    facts, _ = run({"data": data, "openvino-fp32": made}, tmp_path / "out")
    for row in facts["summaries"]:
        assert row["error"] is None and row["backend"] == "CPU" and row["versions"]["openvino"]
        assert row["golden"]["agreement"] == 1 and row["golden"]["max_abs_delta"] < 1e-2  # constants are halves here
        assert "backend_differs" not in row["flags"] and "threads_differ" not in row["flags"]
    assert [row["fed_tokens"] for row in facts["summaries"]] == [[3], [9]]


def test_more_is_measured_where_it_is_asked_for(data, export, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A sustained run, time by operator, and the test split on the device."""
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32")}
    asked = ("bench.sustained_seconds=0.5", "bench.profile=true", "bench.verify=test")
    facts, _ = run(parents, tmp_path / "out", *asked)
    lines = measurement.read(tmp_path / "out" / "measurements.jsonl")
    longest = next(line for line in lines if line.requested["length"] == "max")
    assert sum(longest.sustained["samples_ns"]) >= 0.3e9  # half a second, less what is between two inferences
    row = next(row for row in facts["summaries"] if row["length"] == "max")
    assert row["drift"] == statistics.drift(longest.sustained["samples_ns"]) > 0
    assert {one["type"] for one in longest.operators} and all(one["ns"] >= 0 for one in longest.operators)
    examples = [line for line in (data.path / "test.jsonl").read_text().splitlines() if line]
    assert row["test"]["samples"] == len(examples)
    assert 0 <= row["test"]["metrics"]["accuracy"] <= 1 and "agreement" not in row["test"]  # there is no Program here


def test_drift_is_the_last_tenth_over_the_first() -> None:
    assert statistics.drift([100] * 10 + [130] * 80 + [150] * 10) == 1.5
    assert statistics.drift([1] * 9) is None and statistics.drift([]) is None


def test_energy_is_of_one_inference() -> None:
    block = {"samples_ns": [1] * 10, "energy": {"source": "rapl", "uj": 500.0}}
    assert results.energy_uj([block, block]) == 50.0
    assert results.energy_uj([block, {**block, "energy": None}]) is None and results.energy_uj([]) is None


def test_a_device_that_goes_away_keeps_what_it_gave_and_does_not_hold_up_the_others(
    data,  # type: ignore[no-untyped-def]
    export,
    tmp_path,
    monkeypatch,
) -> None:
    """It is asked once whether it is there; then nothing more is tried on it, and the next device is measured."""
    from edgekd.bench.transports import local
    from edgekd.errors import DeviceError

    asked: list[bytes] = []
    answer = local.LocalWorker.ask

    def dies(self: Any, line: bytes, *, timeout: float) -> bytes:
        if self._name == "far" and b'"block"' in line:
            asked.append(line)
            if len(asked) > 3:
                raise DeviceError("the connection was lost", where="far")
        return answer(self, line, timeout=timeout)

    def gone(self: Any) -> dict[str, Any]:
        if len(asked) > 3:
            raise DeviceError("is offline", where="far")
        return {"machine": "x"}

    monkeypatch.setattr(local.LocalWorker, "ask", dies)
    monkeypatch.setattr(local.Local, "probe", lambda self: gone(self) if self._name == "far" else {"machine": "y"})
    (tmp_path / "far.yaml").write_text("name: far\ntransport: local\nrunner: linux/python/edgekd_runner.py\n")
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32"), "onnx-w8a8": export("onnx", "w8a8")}
    facts, seen = run(parents, tmp_path / "out", f"bench.devices=[{tmp_path / 'far.yaml'}, local]")
    far = [row for row in facts["summaries"] if row["device"] == "far"]
    assert {row["error"] for row in far} == {"far: the connection was lost.", "far: is offline."}
    assert len(asked) == 4
    lines = [line for line in measurement.read(tmp_path / "out" / "measurements.jsonl") if line.device == "far"]
    assert sum(len(block) for line in lines for block in line.latency_ns) == 30  # three blocks came back
    assert all(row["error"] is None for row in facts["summaries"] if row["device"] == "local")
    assert seen[-1][0] == seen[-1][1]
