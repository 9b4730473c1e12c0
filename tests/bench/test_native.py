"""The native runners, built here and asked the same as the Python runner: one wire, one behaviour, the same numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _embedding_sum import BLOCK, TABLE_VC, logits_of, row, write_onnx, write_small
from _emulated import OWN
from _native import BUILD, Runner, build, caller, emulated_runner_of, runner_of

SCHEMA = "edgekd/runner/1"


@pytest.fixture(scope="session")
def native() -> Runner:
    """The runner of ONNX Runtime for this machine."""
    return runner_of("onnx")


def _without_rows(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name != "rows"} | {"phase": "describe"}


def _same(native: Runner, python: Runner, job: dict[str, Any]) -> list[Any]:
    """Both answer the phase ``outputs``, and with the same bits; the logits."""
    (code, [found]), (_, [expected]) = native(job), python(job)
    assert code == 0 and "error" not in expected, (found, expected)
    assert found["logits"] == expected["logits"]
    assert found["observed"]["tokens"] == expected["observed"]["tokens"]
    assert found["observed"]["threads"] == expected["observed"]["threads"] == job["threads"]
    assert found["observed"]["backend"] == expected["observed"]["backend"]
    return found["logits"]


def test_outputs_are_the_python_runners(native: Runner, runner: Runner, job: dict[str, Any], tmp_path: Path) -> None:
    np.testing.assert_allclose(_same(native, runner, job), [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)
    _same(native, runner, {**job, "fixed_lengths": [2, 4, 8], "pad_id": 49})
    write_small(tmp_path / "tokens.onnx", "tokens")
    found = _same(native, runner, {**job, "model": str(tmp_path / "tokens.onnx"), "fixed_lengths": [8]})
    np.testing.assert_allclose(found[0], TABLE_VC[[1, 2, 3]], rtol=1e-6)  # and none for the padding


def test_settings_and_versions_are_the_python_runners(native: Runner, runner: Runner, job: dict[str, Any]) -> None:
    (_, [found]), (_, [expected]) = native(job), runner(job)
    here = set(expected["observed"]) - {"python", "versions"}
    assert {name: found["observed"][name] for name in here} == {name: expected["observed"][name] for name in here}
    assert found["observed"]["versions"]["onnxruntime"]


def test_both_describe_the_inputs_alike(native: Runner, runner: Runner, job: dict[str, Any]) -> None:
    (code, [found]), (_, [expected]) = native(_without_rows(job)), runner(_without_rows(job))
    assert code == 0 and found["inputs"] == expected["inputs"]
    assert found["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": [-1, -1]}
    for one in (found, expected):
        assert one["load_ns"] > 0 and "first_inference_ns" not in one


def test_flat_values_take_the_shape_of_the_signature(
    native: Runner, runner: Runner, job: dict[str, Any], tmp_path: Path
) -> None:
    write_small(tmp_path / "image.onnx", "image")
    pixels_NCHW = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    nested = {
        **job,
        "model": str(tmp_path / "image.onnx"),
        "signature": [{"name": "pixel_values", "dtype": "float32"}],
        "rows": [{"pixel_values": one.tolist()} for one in pixels_NCHW],
    }
    flat = nested | {
        "signature": [{"name": "pixel_values", "dtype": "float32", "shape": [1, 3, 4, 5]}],
        "rows": [{"pixel_values": one.ravel().tolist()} for one in pixels_NCHW],
    }
    found = _same(native, runner, nested)
    assert found == _same(native, runner, flat)
    np.testing.assert_allclose(found, pixels_NCHW.mean((2, 3)), rtol=1e-5)
    ids = [{"name": name, "dtype": "int64", "shape": [1, 3]} for name in ("input_ids", "attention_mask")]
    assert len(_same(native, runner, {**job, "signature": ids, "rows": [row(1, 2, 3)], "fixed_lengths": [8]})) == 1


def test_load_and_memory(native: Runner, job: dict[str, Any]) -> None:
    _, [load] = native({**job, "phase": "load"})
    assert min(load[name] for name in ("import_ns", "load_ns", "first_inference_ns")) > 0 and "memory" not in load
    _, [found] = native({**job, "phase": "memory", "runs": 5})
    memory = found["memory"]
    assert memory["runs"] == 5 and memory["peak_reset"] in (True, False)
    assert memory["peak_bytes"] - memory["baseline_bytes"] == memory["peak_above_bytes"] >= 0
    assert {"anonymous_above_bytes", "file_above_bytes"} <= set(memory)


def test_a_worker_answers_until_stdin_ends(native: Runner, runner: Runner, job: dict[str, Any]) -> None:
    outputs = {"schema": SCHEMA, "request": "outputs", "rows": [row(7)]}
    profile = {"schema": SCHEMA, "request": "profile", "rows": [row(7)], "runs": 3}
    answers = [one({**job, "phase": "time"}, BLOCK, outputs, profile) for one in (native, runner)]
    for code, [ready, block, golden, operators] in answers:
        assert code == 0 and ready["phase"] == "time"
        assert len(block["samples_ns"]) == 25 and min(block["samples_ns"]) > 0
        assert block["warmup"]["runs"] == 3 and block["tokens"] == [2, 3]
        assert sum(block["samples_ns"]) <= block["wall_ns"]
        np.testing.assert_allclose(golden["logits"], [logits_of([7])], rtol=1e-6)
        assert {one["type"] for one in operators["operators"]} >= {"Gather", "Mul", "ReduceSum"}
        assert all(one["calls"] == 1 and one["ns"] >= 0 for one in operators["operators"])
    (_, first), (_, second) = answers
    for one, other in zip(first, second, strict=True):
        assert set(one) == set(other)  # field by field the documented ones
    assert {one["name"] for one in first[3]["operators"]} == {one["name"] for one in second[3]["operators"]}


def test_a_block_lasts_its_time_and_no_longer(native: Runner, job: dict[str, Any]) -> None:
    long = {**BLOCK, "min_runs": 1, "min_seconds": 0.2, "warmup_seconds": 0.1}
    endless = {**BLOCK, "min_runs": 10**9, "max_seconds": 0.2}
    _, [_, timed, cut] = native({**job, "phase": "time"}, long, endless)
    assert timed["wall_ns"] >= 2e8 and timed["warmup"]["seconds"] >= 0.1 and len(timed["samples_ns"]) > 1
    assert 2e8 <= cut["wall_ns"] < 2e9


@pytest.mark.parametrize("which", ["native", "python"])
def test_energy_is_read_where_the_machine_tells_it(
    which: str, runner_file: Path, job: dict[str, Any], tmp_path: Path
) -> None:
    """From a stand-in for /sys: counters that stand still, and a battery of 2 W."""
    command = [sys.executable, str(runner_file)]
    if which == "native":
        command = [str(build("onnx", OWN) / "runner")]

    def energy() -> Any:
        _, [_, block] = caller(*command, sysfs=tmp_path)({**job, "phase": "time"}, BLOCK)
        return block["energy"], block["wall_ns"]

    def write(folder: str, **values: str) -> None:
        (tmp_path / "class" / folder).mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (tmp_path / "class" / folder / name).write_text(value + "\n")

    assert energy()[0] is None
    write("power_supply/BAT0", status="Charging", current_now="500000", voltage_now="4000000")
    assert energy()[0] is None
    write("power_supply/BAT0", status="Discharging")
    found, wall_ns = energy()
    assert found["source"] == "battery" and found["uj"] == pytest.approx(2 * wall_ns / 1e3, abs=1)
    write("powercap/intel-rapl:0", name="package-0", energy_uj="7", max_energy_range_uj="1000")
    write("powercap/intel-rapl:0:0", name="core", energy_uj="7", max_energy_range_uj="1000")
    assert energy()[0] == {"source": "rapl", "uj": 0}


WRONG_JOBS: list[tuple[dict[str, Any], str, str]] = [
    ({"schema": "edgekd/runner/2"}, "job", "schema"),
    ({"phase": "race"}, "job", "race"),
    ({"runtime": "coreml"}, "unavailable", "coreml"),
    ({"threads": 0}, "job", "threads"),
    ({"threads": True}, "job", "threads"),
    ({"runs": 1.5}, "job", "runs"),
    ({"pad_id": "0"}, "job", "pad_id"),
    ({"fixed_lengths": [8, 2]}, "job", "fixed_lengths"),
    ({"cpu_affinity": []}, "job", "cpu_affinity"),
    ({"model": 7}, "job", "model"),
    ({"rows": []}, "job", "rows"),
    ({"rows": [{"input_ids": []}]}, "job", "rows"),
    ({"rows": [{"input_ids": [1]}]}, "job", "attention_mask"),
    ({"rows": [{"input_ids": [1.5], "attention_mask": [1]}]}, "job", "whole number"),
    ({"rows": [{"input_ids": [True], "attention_mask": [1]}]}, "job", "whole number"),
    ({"rows": [{"input_ids": [[1, 2], [3]], "attention_mask": [1]}]}, "job", "differ in length"),
    ({"rows": [row(1, 2, 3)], "fixed_lengths": [2]}, "job", "longer"),
    ({"model": "nowhere.onnx"}, "job", "nowhere"),
    ({"speed": 11}, "job", "speed"),
    ({"signature": [{"name": "input_ids", "dtype": "complex64"}]}, "job", "complex64"),
    ({"signature": [{"name": "input_ids"}]}, "job", "dtype"),
    ({"signature": [{"name": "input_ids", "dtype": "int64", "shape": [1, -1]}]}, "job", "shape"),
    ({"signature": [{"name": "input_ids", "dtype": "int64", "shape": [1, 4]}]}, "job", "flat list"),
]
WRONG_REQUESTS: list[tuple[Any, str]] = [
    ({"schema": SCHEMA, "request": "sing"}, "sing"),
    ({"schema": "x", "request": "outputs", "rows": [row(1)]}, "schema"),
    ({"schema": SCHEMA, "request": "outputs"}, "rows"),
    ({"schema": SCHEMA, "request": "outputs", "rows": [row(1)], "loud": 1}, "loud"),
    ({**BLOCK, "min_runs": "many"}, "block needs"),
    ({"schema": SCHEMA, "request": "profile", "rows": [row(1)], "runs": 0}, "runs"),
    ("{", "JSON"),
]


def test_both_refuse_the_same(native: Runner, runner_file: Path, job: dict[str, Any], tmp_path: Path) -> None:
    """Kind and words; the Python runner's own checks are called in one process, which is quicker."""
    spec = importlib.util.spec_from_file_location("edgekd_runner_checks", runner_file)
    assert spec is not None and spec.loader is not None
    python = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = python
    spec.loader.exec_module(python)
    for change, kind, told in WRONG_JOBS:
        code, [found] = native({**job, **change})
        assert code == 1 and found["error"]["kind"] == kind and told in found["error"]["message"], (change, found)
        with pytest.raises(python.RunnerError) as error:
            python.run(python.check({**job, **change}))
        assert error.value.kind == kind and told in str(error.value), change
    for text in ("", "{", "[]"):
        code, [found] = native(text)
        assert code == 1 and found["error"]["kind"] == "job"
    code, [found] = native(_without_rows(job) | {"rows": job["rows"]})
    assert code == 1 and found["error"] == {"kind": "job", "message": "unknown: rows"}
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    code, [found] = native({**job, "model": str(tmp_path / "bad.onnx")})
    assert code == 1 and found["error"]["kind"] == "failed" and "\n" not in found["error"]["message"]


def test_both_refuse_the_same_requests(native: Runner, runner: Runner, job: dict[str, Any]) -> None:
    for request, told in WRONG_REQUESTS:
        for one in (native, runner) if request in (WRONG_REQUESTS[0][0], "{") else (native,):
            code, [_, found] = one({**job, "phase": "time"}, request)
            assert code == 1 and found["error"]["kind"] == "job" and told in found["error"]["message"], (request, found)


def test_a_runner_without_its_library_says_so(native: Runner, job: dict[str, Any], tmp_path: Path) -> None:
    folder = build("onnx", OWN)
    for name in ("runner", "runtime.so"):
        shutil.copy(folder / name, tmp_path / name)
    code, [found] = caller(str(tmp_path / "runner"))(job)
    assert code == 1 and found["error"]["kind"] == "unavailable" and "libonnxruntime" in found["error"]["message"]


def test_cpu_affinity_is_obeyed_and_reported(native: Runner, job: dict[str, Any]) -> None:
    one = min(os.sched_getaffinity(0))
    _, [found] = native({**job, "cpu_affinity": [one]})
    assert found["observed"]["cpu_affinity"] == [one]


def test_what_is_built_says_what_it_is_and_is_not_built_again(native: Runner) -> None:
    folder = build("onnx", OWN)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"]["packages"]["onnxruntime"]["version"]
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    done = subprocess.run(
        [sys.executable, str(BUILD), "--runtime", "onnx", "--arch", OWN], capture_output=True, text=True, timeout=300
    )
    assert done.stdout == f"{OWN} onnx: unchanged\n"
    assert str(BUILD.parent).encode() not in (folder / "runtime.so").read_bytes() + (folder / "runner").read_bytes()


def test_a_missing_compiler_is_told_with_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, str(BUILD), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": str(tmp_path / "empty")},
    )
    assert done.returncode == 1 and "cmake" in done.stderr and "apt-get install" in done.stderr


# --- the other runtimes and the other architecture: packages of tens of megabytes, converters ---


def _tiny() -> Any:
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.from_numpy(TABLE_VC))
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
            kept = torch.nn.functional.embedding(input_ids, self.table) * attention_mask[..., None].float()
            return self.linear(torch.relu(self.linear(kept.sum(1))))

    torch.manual_seed(0)
    return Tiny().eval()


def _ones(length: int) -> dict[str, Any]:
    import torch

    return {name: torch.ones(1, length, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def tiny_litert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of one length, and one of two."""
    litert_torch = pytest.importorskip("litert_torch")
    folder = tmp_path_factory.mktemp("litert")
    litert_torch.convert(_tiny(), tuple(_ones(8).values())).export(str(folder / "one.tflite"))
    both = litert_torch.signature("serving_default", _tiny(), sample_kwargs=_ones(8))
    both.signature("tokens_2", _tiny(), sample_kwargs=_ones(2)).convert().export(str(folder / "two.tflite"))
    return {"one": folder / "one.tflite", "two": folder / "two.tflite"}


@pytest.fixture(scope="module")
def tiny_executorch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same program for ExecuTorch's own kernels and for XNNPACK."""
    import torch

    exir = pytest.importorskip("executorch.exir")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    folder = tmp_path_factory.mktemp("executorch")
    for name, partitioner in (("portable", None), ("xnnpack", [XnnpackPartitioner()])):
        exported = torch.export.export(_tiny(), tuple(_ones(8).values()))
        made = exir.to_edge_transform_and_lower(exported, partitioner=partitioner).to_executorch()
        (folder / f"{name}.pte").write_bytes(made.buffer)
    return {name: folder / f"{name}.pte" for name in ("portable", "xnnpack")}


@pytest.mark.slow
def test_litert_answers_as_the_python_runner(runner: Runner, job: dict[str, Any], tiny_litert: dict[str, Path]) -> None:
    native = runner_of("litert")
    for name, lengths in (("one", [8]), ("two", [2, 8])):
        asked = {**job, "runtime": "litert", "model": str(tiny_litert[name]), "fixed_lengths": lengths, "pad_id": 49}
        assert len(_same(native, runner, asked)) == 2
        (_, [found]), (_, [expected]) = native(_without_rows(asked)), runner(_without_rows(asked))
        assert found["inputs"] == expected["inputs"], name
    request = {"schema": SCHEMA, "request": "profile", "rows": [row(7)], "runs": 3}
    code, [_, block, profile] = native({**asked, "phase": "time"}, BLOCK, request)
    assert code == 0 and len(block["samples_ns"]) == 25 and profile["operators"]
    code, [_, found] = runner({**asked, "phase": "time"}, request)
    assert code == 1 and found["error"]["kind"] == "unavailable"
    code, [found] = native({**asked, "fixed_lengths": [4]})
    assert code == 1 and found["error"]["kind"] == "job" and "signature of length 4" in found["error"]["message"]


@pytest.mark.slow
def test_executorch_answers_as_the_python_runner(
    runner: Runner, job: dict[str, Any], tiny_executorch: dict[str, Path]
) -> None:
    native = runner_of("executorch")
    for path in tiny_executorch.values():
        asked = {**job, "runtime": "executorch", "model": str(path), "fixed_lengths": [8], "pad_id": 49}
        assert len(_same(native, runner, asked)) == 2
        (_, [found]), (_, [expected]) = native(_without_rows(asked)), runner(_without_rows(asked))
        assert found["inputs"] == expected["inputs"]
    request = {"schema": SCHEMA, "request": "profile", "rows": [row(7)], "runs": 3}
    code, [_, found] = native({**asked, "phase": "time"}, request)
    assert code == 1 and found["error"]["kind"] == "unavailable"


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
def test_the_aarch64_build_answers_the_same(runtime: str, job: dict[str, Any], tmp_path: Path, request: Any) -> None:
    """Under an emulator; of floats the last bits may differ between processors."""
    emulated = emulated_runner_of(runtime)
    if runtime == "onnx":
        path = tmp_path / "model.onnx"
        write_onnx(path)
    else:
        made = request.getfixturevalue(f"tiny_{runtime}")
        path = made["one" if runtime == "litert" else "portable"]
    asked = {**job, "runtime": runtime, "model": str(path), "fixed_lengths": [8], "pad_id": 49}
    (code, [found]), (_, [expected]) = emulated(asked), runner_of(runtime)(asked)
    assert code == 0, found
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-6)


def test_a_whole_bench_runs_without_python_on_the_device(native: Runner, data, export, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The profile `local-native` against `local`: the same files, the same golden answers, nothing but the runner."""
    from test_bench import run

    parents = {"data": data, "onnx-fp32": export("onnx", "fp32"), "onnx-w8a8": export("onnx", "w8a8", fixed=True)}
    facts, _ = run(parents, tmp_path / "out", "bench.devices=[local, local-native]")
    found = {(one["device"], one["scheme"], one["length"]): one for one in facts["summaries"]}
    assert len(found) == 8 and not facts["failed"]
    for (_, scheme, length), one in found.items():
        python = found["local", scheme, length]
        assert one["golden"] == python["golden"] and one["golden"]["agreement"] == 1
        assert one["fed_tokens"] == python["fed_tokens"]
        assert one["backend"] == "CPUExecutionProvider" and one["peak_mb"] > 0 and one["load_ms"] > 0
