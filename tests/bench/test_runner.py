"""The standalone runner, as a process: what it answers, and how it says no."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _embedding_sum import BLOCK, TABLE_VC, logits_of, row, write_small


def test_the_runner_knows_the_processors_whose_int8_products_saturate(runner_file: Path) -> None:
    """By their flags; the target finds out by multiplying."""
    from edgekd.targets import onnx

    spec = importlib.util.spec_from_file_location("edgekd_runner", runner_file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    assert module.int8_products_saturate() == onnx.int8_products_saturate()


def test_outputs_are_the_models(runner, job) -> None:  # type: ignore[no-untyped-def]
    code, documents = runner(job)
    assert code == 0 and len(documents) == 1
    found = documents[0]
    assert (found["schema"], found["version"], found["phase"]) == ("edgekd/runner/1", "1", "outputs")
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)
    assert found["observed"]["tokens"] == [2, 3]
    assert found["observed"]["backend"] == "CPUExecutionProvider"
    assert found["observed"]["versions"]["onnxruntime"]


def test_a_fixed_length_pads_without_changing_the_answer(runner, job) -> None:  # type: ignore[no-untyped-def]
    _, [found] = runner({**job, "fixed_lengths": [8], "pad_id": 49})
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)
    assert found["observed"]["tokens"] == [8]
    _, [found] = runner({**job, "fixed_lengths": [2, 4, 8]})  # the shortest that holds a row
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)
    assert found["observed"]["tokens"] == [2, 4]
    code, [found] = runner({**job, "fixed_lengths": [2]})
    assert code == 1 and "longer" in found["error"]["message"]


def test_padded_tokens_get_no_logits(runner, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_small(tmp_path / "tokens.onnx", "tokens")
    job = {**job, "model": str(tmp_path / "tokens.onnx"), "fixed_lengths": [8]}
    code, [found] = runner(job)
    assert code == 0 and found["observed"]["tokens"] == [8]
    for logits, ids in zip(found["logits"], ([1, 2, 3], [4, 5]), strict=True):
        np.testing.assert_allclose(logits, TABLE_VC[ids], rtol=1e-6)


def test_images_are_fed_as_they_are(runner, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_small(tmp_path / "image.onnx", "image")
    pixels_NCHW = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    job = {
        **job,
        "model": str(tmp_path / "image.onnx"),
        "signature": [{"name": "pixel_values", "dtype": "float32"}],
        "rows": [{"pixel_values": one.tolist()} for one in pixels_NCHW],
    }
    code, [ready, block] = runner({**job, "phase": "time"}, {**BLOCK, "rows": job["rows"]})
    assert code == 0 and block["tokens"] == ready["observed"]["tokens"] == [1]
    _, [found] = runner(job)
    np.testing.assert_allclose(found["logits"], pixels_NCHW.mean((2, 3)), rtol=1e-5)


def test_load_and_memory(runner, job) -> None:  # type: ignore[no-untyped-def]
    _, [load] = runner({**job, "phase": "load"})
    assert load["load_ns"] > 0 and load["first_inference_ns"] > 0 and "memory" not in load
    _, [found] = runner({**job, "phase": "memory", "runs": 5})
    memory = found["memory"]
    assert memory["runs"] == 5
    assert memory["peak_bytes"] - memory["baseline_bytes"] == memory["peak_above_bytes"] >= 0


def test_memory_counts_the_model_and_not_the_imports(runner, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A model with 40 MB of weights raises the peak by about that, whatever the packages weigh."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(job["model"])
    large = np.random.default_rng(0).normal(size=(3_400_000, 3)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "table"))
    onnx.save(model, tmp_path / "large.onnx")
    _, [small] = runner({**job, "phase": "memory"})
    _, [found] = runner({**job, "phase": "memory", "model": str(tmp_path / "large.onnx")})
    grown = found["memory"]["peak_above_bytes"] - small["memory"]["peak_above_bytes"]
    assert 0.9 * large.nbytes < grown < 3.5 * large.nbytes  # the runtime may hold file and weights at once


def test_a_worker_answers_until_stdin_ends(runner, job) -> None:  # type: ignore[no-untyped-def]
    outputs = {"schema": "edgekd/runner/1", "request": "outputs", "rows": [row(7)]}
    code, [ready, first, golden, second] = runner({**job, "phase": "time"}, BLOCK, outputs, BLOCK)
    assert code == 0
    assert ready["phase"] == "time" and ready["load_ns"] > 0
    for block in (first, second):
        assert len(block["samples_ns"]) == 25 and min(block["samples_ns"]) > 0
        assert block["warmup"]["runs"] == 3
        assert sum(block["samples_ns"]) <= block["wall_ns"]
        assert block["tokens"] == [2, 3]
    np.testing.assert_allclose(golden["logits"], [logits_of([7])], rtol=1e-6)


def test_a_block_lasts_its_time_and_no_longer(runner, job) -> None:  # type: ignore[no-untyped-def]
    long = {**BLOCK, "min_runs": 1, "min_seconds": 0.2, "warmup_seconds": 0.1}
    endless = {**BLOCK, "min_runs": 10**9, "max_seconds": 0.2}
    _, [_, timed, cut] = runner({**job, "phase": "time"}, long, endless)
    assert timed["wall_ns"] >= 2e8 and timed["warmup"]["seconds"] >= 0.1 and len(timed["samples_ns"]) > 1
    assert 2e8 <= cut["wall_ns"] < 2e9


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"schema": "edgekd/runner/2"}, "job", "schema"),
        ({"phase": "race"}, "job", "race"),
        ({"runtime": "coreml"}, "unavailable", "coreml"),
        ({"threads": 0}, "job", "threads"),
        ({"rows": []}, "job", "rows"),
        ({"rows": [{"input_ids": []}]}, "job", "rows"),
        ({"rows": [{"input_ids": [1]}]}, "job", "attention_mask"),
        ({"model": "nowhere.onnx"}, "job", "nowhere"),
        ({"speed": 11}, "job", "speed"),
        ({"signature": [{"name": "input_ids", "dtype": "complex64"}]}, "job", "complex64"),
    ],
)
def test_a_wrong_job_is_refused(runner, job, change: dict[str, Any], kind: str, message: str) -> None:  # type: ignore[no-untyped-def]
    code, [found] = runner({**job, **change})
    assert code == 1
    assert found["error"]["kind"] == kind and message in found["error"]["message"]


def test_broken_lines_and_files_are_told(runner, job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for text in ("", "{", "[]"):
        code, [found] = runner(text)
        assert code == 1 and found["error"]["kind"] == "job"
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    code, [found] = runner({**job, "model": str(tmp_path / "bad.onnx")})
    assert code == 1 and found["error"]["kind"] == "failed" and "\n" not in found["error"]["message"]
    code, [_, found] = runner({**job, "phase": "time"}, {"schema": "edgekd/runner/1", "request": "sing"})
    assert code == 1 and "sing" in found["error"]["message"]


def test_what_a_vendor_prints_stays_out_of_the_answer(runner, job, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A stand-in for a runtime that greets on stdout, from Python and from below."""
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").write_text("import os; print('hello'); os.write(1, b'hello\\n')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, documents = runner({**job, "runtime": "litert"})
    assert code == 1 and len(documents) == 1
    assert documents[0]["error"]["kind"] == "failed" and "interpreter" in documents[0]["error"]["message"]


def test_cpu_affinity_is_obeyed_and_reported(runner, job) -> None:  # type: ignore[no-untyped-def]
    import os

    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no processor affinity on this system")
    one = min(os.sched_getaffinity(0))
    _, [found] = runner({**job, "cpu_affinity": [one]})
    assert found["observed"]["cpu_affinity"] == [one]


def test_torch_runs_a_transformers_folder(runner, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = BertForSequenceClassification(shape).eval()
    model.save_pretrained(tmp_path / "model")
    _, [found] = runner({**job, "runtime": "torch", "model": str(tmp_path / "model")})
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits[0].numpy() for ids in ([1, 2, 3], [4, 5])]
    np.testing.assert_allclose(found["logits"], expected, atol=1e-6)
    assert found["observed"]["threads"] == 1 and found["observed"]["versions"]["transformers"]


def _embedding_sum():  # type: ignore[no-untyped-def]
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.from_numpy(TABLE_VC))

        def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
            return (torch.nn.functional.embedding(input_ids, self.table) * attention_mask[..., None].float()).sum(1)

    return Tiny().eval(), (torch.ones(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64))


@pytest.mark.slow
def test_a_litert_file_of_two_lengths(runner, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import torch

    litert_torch = pytest.importorskip("litert_torch")
    model, _ = _embedding_sum()
    ones = [
        {name: torch.ones(1, size, dtype=torch.int64) for name in ("input_ids", "attention_mask")} for size in (8, 2)
    ]
    both = litert_torch.signature("serving_default", model, sample_kwargs=ones[0])
    both.signature("tokens_2", model, sample_kwargs=ones[1]).convert().export(str(tmp_path / "model.tflite"))
    job |= {"runtime": "litert", "model": str(tmp_path / "model.tflite"), "fixed_lengths": [2, 8], "pad_id": 49}
    code, [found] = runner(job)
    assert code == 0, found
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-5)
    assert found["observed"]["tokens"] == [2, 8] and found["observed"]["backend"]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["litert", "executorch", "openvino", "torch"])
def test_the_other_runtimes(runner, job, tmp_path, runtime: str) -> None:  # type: ignore[no-untyped-def]
    """The same model through each vendor's own converter; fixed length 8, so the runner pads."""
    import torch

    model, example = _embedding_sum()
    if runtime == "litert":
        litert_torch = pytest.importorskip("litert_torch")
        path = tmp_path / "model.tflite"
        litert_torch.convert(model, example).export(str(path))
    elif runtime == "executorch":
        exir = pytest.importorskip("executorch.exir")
        path = tmp_path / "model.pte"
        path.write_bytes(exir.to_edge_transform_and_lower(torch.export.export(model, example)).to_executorch().buffer)
    elif runtime == "openvino":
        openvino = pytest.importorskip("edgekd.targets.openvino")._openvino()
        path = tmp_path / "model.xml"
        openvino.save_model(openvino.convert_model(torch.export.export(model, example)), path, compress_to_fp16=False)
    else:
        path = tmp_path / "model.pt2"
        torch.export.save(torch.export.export(model, example), path)
    code, [found] = runner({**job, "runtime": runtime, "model": str(path), "fixed_lengths": [8], "pad_id": 49})
    assert code == 0, found
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-5)
    assert found["observed"]["threads"] == 1 and found["observed"]["tokens"] == [8]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_writer_does_not_write_what_is_no_number(broken: float, runner_file: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(runner_file.parent))
    from edgekd_runner import RunnerError
    from edgekd_writers import _likeliest

    assert _likeliest(np.array([0.5, 2.0, -1.0, 2.0], np.float32)) == 1
    with pytest.raises(RunnerError, match="not finite"):
        _likeliest(np.array([0.5, broken, 2.0], np.float32))
