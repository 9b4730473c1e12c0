"""The ONNX target: the file holds the Program's numbers, and onnxruntime runs them in integers."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from _programs import (
    LINEAR_LAYERS,
    MAX_LENGTH,
    VOCABULARY,
    activation_scales,
    golden_of,
    machine_words,
    weights,
)
from onnx import helper, numpy_helper

from edgekd.artifact import Artifact
from edgekd.errors import BadInput, Environment
from edgekd.targets import onnx as target


@pytest.fixture(scope="module")
def exported(make_program, tmp_path_factory):  # type: ignore[no-untyped-def]
    """Scheme -> (Program, folder of its ONNX artefact, facts)."""
    made = {}
    for scheme in ("fp32", "w8a8"):
        out = tmp_path_factory.mktemp(f"onnx-{scheme}")
        program = make_program(scheme)
        made[scheme] = (program, out, target.export(program.path, out, max_length=MAX_LENGTH))
    return made


@pytest.fixture(scope="module")
def translated(make_program):  # type: ignore[no-untyped-def]
    """Call it for a fresh copy of the exact Program as the exporter spells it, before any pass."""
    proto = ir.to_proto(target._translate(make_program("w8a8", exact=True).path, ["input_ids", "attention_mask"]))
    return lambda: ir.from_proto(proto)


def run(model: bytes | Path, batches: list[dict[str, np.ndarray]], *, optimise: bool) -> list[np.ndarray]:
    """Plain onnxruntime, with the option that the artefact's caveat names where this CPU needs it."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(target.EXACT_INT8, "1" if target.int8_products_saturate() else "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [session.run(None, batch)[0] for batch in batches]


def batches() -> list[dict[str, np.ndarray]]:
    """Single rows and padded batches of several lengths."""
    random = np.random.default_rng(3)
    made = []
    for size, length in ((1, 2), (1, 9), (1, MAX_LENGTH), (3, 7), (4, 16)):
        ids = random.integers(2, VOCABULARY, size=(size, length))
        kept = random.integers(2, length + 1, size=size)
        mask = (np.arange(length) < kept[:, None]).astype(np.int64)
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def test_every_pass_keeps_every_bit(translated) -> None:  # type: ignore[no-untyped-def]
    model = translated()
    before = run(ir.to_proto(model).SerializeToString(), batches(), optimise=False)
    assert len({logits.tobytes() for logits in before}) == len(before)  # the model is not a constant
    for step in (target.shift_to_uint8, target.flatten_tokens, target.spell_as_gemm):
        changed = step(model)
        assert changed >= LINEAR_LAYERS, step.__name__
        after = run(ir.to_proto(model).SerializeToString(), batches(), optimise=False)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new, old, err_msg=step.__name__, strict=True)


def test_onnxruntime_runs_every_quantized_layer_as_one_integer_gemm(exported, tmp_path) -> None:  # type: ignore[no-untyped-def]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    _, out, facts = exported["w8a8"]
    onnxruntime.InferenceSession(str(out / "model.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["QGemm"] == LINEAR_LAYERS
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if "MatMul" in node.op_type or node.op_type in ("Gemm", "FusedGemm")]
    assert not [node.op_type for node in products if constants & set(node.input[:2])]
    assert facts["passes"] == ["shift_to_uint8", "flatten_tokens", "spell_as_gemm"]


def test_trained_weights_and_scales_are_in_the_file_bit_for_bit(exported) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported["w8a8"]
    graph = onnx.load(out / "model.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    read_by = {name: node for node in graph.node for name in node.input}
    for name, expected in weights(program).items():
        found = stored[f"{name}.weight_q"]
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, expected["weight_q"])
        dequantize = read_by[f"{name}.weight_q"]
        if "bias" not in expected:  # an embedding: int8 rows are gathered, and their scales
            assert dequantize.op_type == "Gather"
            np.testing.assert_array_equal(stored[f"{name}.w_scale"], expected["w_scale"])
            continue
        np.testing.assert_array_equal(stored[dequantize.input[1]], expected["w_scale"])
        assert not stored[dequantize.input[2]].any()
        gemm = read_by[dequantize.output[0]]
        bias = next(node for node in graph.node if node.output[0] == gemm.input[2])
        in_scale = stored[next(node for node in graph.node if node.output[0] == gemm.input[0]).input[1]]
        grid = in_scale.astype(np.float64) * expected["w_scale"]
        np.testing.assert_array_equal(stored[bias.input[0]], np.round(expected["bias"] / grid).astype(np.int32))
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    found = {(np.float32(stored[q.input[1]]), int(stored[q.input[2]]) - 128) for q in quantizers}
    assert found == activation_scales(program)


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_golden_logits_in_plain_onnxruntime_and_in_the_session(exported, scheme: str) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported[scheme]
    inputs, expected = golden_of(program)
    plain = np.concatenate(run(out / "model.onnx", inputs, optimise=True))
    bound = target.golden_bound(scheme, float(np.ptp(expected)))
    assert np.abs(plain - expected).max() <= bound
    if scheme == "w8a8":  # ties are rare: most answers are identical
        assert (np.abs(plain - expected).max(1) < 1e-6).mean() >= 0.5
    session = target.open_session(out)
    np.testing.assert_array_equal(np.concatenate([session.run(one) for one in inputs]), plain)
    assert session.observed["runtime"] == "onnxruntime" and session.observed["threads"] == 1
    session.close()


def test_padding_in_a_batch_changes_nothing(exported) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = exported["w8a8"]
    for batch in batches():
        together = run(out / "model.onnx", [batch], optimise=True)[0]
        rows = [
            {k: v[i : i + 1, : batch["attention_mask"][i].sum()] for k, v in batch.items()}
            for i in range(len(together))
        ]
        alone = np.concatenate(run(out / "model.onnx", rows, optimise=True))
        np.testing.assert_allclose(together, alone, atol=0.1 * np.ptp(together))
        assert (together.argmax(1) == alone.argmax(1)).all()


def test_the_file_is_small_plain_and_says_who_made_it(exported, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sizes = {}
    for scheme, (_, out, facts) in exported.items():
        content = (out / "model.onnx").read_bytes()
        assert [path.name for path in out.iterdir()] == ["model.onnx"]
        assert facts["size_bytes"] == len(content)
        assert not [word for word in machine_words(tmp_path) if word in content]
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert model.producer_name == "edgekd" and not model.metadata_props
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": target.OPSET}
        assert not [node.name for node in model.graph.node if node.metadata_props or node.doc_string]
        assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", "sequence"]
        sizes[scheme] = len(content)
    assert facts["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}
    assert facts["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 5]}]
    assert sizes["w8a8"] < 0.45 * sizes["fp32"]  # of a tiny model: the graph itself weighs 0.1


def test_same_program_same_bytes_in_another_process(exported, tmp_path) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported["w8a8"]
    code = (
        "import sys; from pathlib import Path; from edgekd.targets import onnx;"
        f"onnx.export(Path(sys.argv[1]), Path(sys.argv[2]), max_length={MAX_LENGTH})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(program.path), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    digests = [hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() for folder in (out, tmp_path)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_other_families_run_in_integers_too(make_program, tmp_path, family: str) -> None:  # type: ignore[no-untyped-def]
    program: Artifact = make_program("w8a8", family)
    target.export(program.path, tmp_path, max_length=MAX_LENGTH)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert kinds["Gemm"] == LINEAR_LAYERS
    inputs, expected = golden_of(program)
    found = np.concatenate(run(tmp_path / "model.onnx", inputs, optimise=True))
    assert np.abs(found - expected).max() <= target.golden_bound("w8a8", float(np.ptp(expected)))


def test_a_bias_off_the_grid_is_refused(translated) -> None:  # type: ignore[no-untyped-def]
    model = translated()
    target.shift_to_uint8(model)
    target.flatten_tokens(model)
    name = next(name for name in model.graph.initializers if name.endswith("query.bias"))
    bias = model.graph.initializers[name]
    bias.const_value = ir.tensor(bias.const_value.numpy() * np.float32(1.1), name=name)
    with pytest.raises(BadInput, match="is not an int32 multiple of input scale x weight scale"):
        target.spell_as_gemm(model)


def test_a_quantized_layer_that_would_run_in_float_is_refused(translated, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model = translated()
    monkeypatch.setattr(target, "flatten_tokens", lambda model: 0)
    with pytest.raises(BadInput, match="not by Gemm"):
        target.legalise(model)


def test_exact_int8_kernels_are_chosen_where_the_cpu_saturates(exported, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if "vnni" in flags:
        assert not target.int8_products_saturate()
    _, out, _ = exported["w8a8"]
    ordinary = target.open_session(out)
    monkeypatch.setattr(target, "int8_products_saturate", lambda: True)
    exact = target.open_session(out)
    assert exact.observed[target.EXACT_INT8] == "1" and exact.observed["caveats"]
    if "vnni" in flags:
        for batch in batches():
            np.testing.assert_array_equal(exact.run(batch), ordinary.run(batch))


def test_an_answer_is_split_into_the_outputs_that_clients_know() -> None:
    shape = ["batch", "sequence", 2]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "logits")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["logits"])], "main", ends[:1], ends[1:])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", target.OPSET)], ir_version=10)
    split = target.split_answer(whole.SerializeToString())
    assert split == target.split_answer(whole.SerializeToString())
    onnx.checker.check_model(onnx.load_from_string(split), full_check=True)
    x_BS2 = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    found = onnxruntime.InferenceSession(split).run(["start_logits", "end_logits"], {"x": x_BS2})
    for place, one in enumerate(found):
        np.testing.assert_array_equal(one, -x_BS2[..., place])


def test_missing_packages_and_broken_files_say_so(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(Environment, match="does not open it"):
        target.open_session(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[onnx\]'"):
        target.export(tmp_path, tmp_path, max_length=8)
