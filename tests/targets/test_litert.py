"""The LiteRT target: the file holds the Program's numbers, and XNNPACK runs them in integers."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import _kinds
import numpy as np
import pytest
import torch
from _programs import (
    LAYERS,
    LINEAR_LAYERS,
    MAX_LENGTH,
    VOCABULARY,
    activation_scales,
    golden_of,
    machine_words,
    weights,
)

from edgekd.errors import BadInput, Environment
from edgekd.quantize import integer
from edgekd.quantize import scheme as schemes
from edgekd.targets import _litert_passes as passes
from edgekd.targets import _mediapipe
from edgekd.targets import litert as target
from edgekd.targets._contract import load_program, read_signature, specialise

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("litert_torch")
from ai_edge_litert import schema_py_generated as schema  # noqa: E402

STATIC = replace(schemes.get("w8a8"), overrides={})
MIXED = replace(schemes.get("w8a8"), overrides={schemes.CONTRACTING: "w8a8-dynamic"})
STORED = ("w8a8-dynamic", "w8", "w4", "fp16")  # schemes whose weights the converter does not see


@pytest.fixture(scope="module")
def exported(make_program, tmp_path_factory):  # type: ignore[no-untyped-def]
    """Scheme -> (Program, folder of its LiteRT artefact, facts); each is made when it is asked for."""

    @cache
    def made(scheme: str) -> tuple[Any, Path, dict[str, Any]]:
        with pytest.MonkeyPatch.context() as patch:  # a recipe's override, as `mixed`
            patch.setitem(schemes.SCHEMES, "mixed", MIXED)
            patch.setitem(schemes.SCHEMES, "static", STATIC)
            program = make_program(scheme)
        out = tmp_path_factory.mktemp(f"litert-{scheme}")
        return program, out, target.export(program.path, out, max_length=MAX_LENGTH)

    return made


def parsed(path: Path) -> tuple[Any, Any]:
    """The flatbuffer's model and its only graph."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    assert len(model.subgraphs) == 1
    return model, model.subgraphs[0]


def operations(model: Any, graph: Any) -> list[tuple[str, Any]]:
    """(name, operator) in order."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [(names[codes[operator.opcodeIndex]], operator) for operator in graph.operators]


def stored(model: Any, tensor: Any, dtype: Any) -> np.ndarray:
    """A constant tensor's values."""
    return np.asarray(model.buffers[tensor.buffer].data).view(dtype).reshape(tensor.shape)


def specialised(program: Path) -> torch.fx.GraphModule:
    """The Program at the file's length, before any pass."""
    inputs, _ = read_signature(program)
    return specialise(load_program(program), inputs, MAX_LENGTH).module()


def test_unfolding_weights_keeps_every_bit(make_program) -> None:  # type: ignore[no-untyped-def]
    program = make_program("w8a8")
    module = specialised(program.path)
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(2, VOCABULARY, size=(1, MAX_LENGTH)))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before = module(ids, mask)
        assert target.unfold_weights(module) == LINEAR_LAYERS
        after = module(ids, mask)
    assert torch.equal(before, after) and before.unique().numel() > 1


def test_a_weight_that_cannot_be_unfolded_exactly_is_refused(make_program) -> None:  # type: ignore[no-untyped-def]
    module = specialised(make_program("w8a8").path)
    next(buffer for name, buffer in module.named_buffers() if name.endswith("w_scale") and buffer.ndim == 1).fill_(
        1e-45
    )
    with pytest.raises(BadInput, match="too small for float32"):
        target.unfold_weights(module)


def test_every_quantized_layer_is_one_int8_fully_connected(exported) -> None:  # type: ignore[no-untyped-def]
    program, out, facts = exported("static")
    model, graph = parsed(out / "model.tflite")
    found = [operator for name, operator in operations(model, graph) if name == "FULLY_CONNECTED"]
    kinds = schema.TensorType
    expected = ([kinds.INT8, kinds.INT8, kinds.INT32], [kinds.INT8])
    for operator in found:
        types = [[graph.tensors[index].type for index in side] for side in (operator.inputs, operator.outputs)]
        assert tuple(types) == expected
    assert len(found) == LINEAR_LAYERS == len([w for w in weights(program).values() if "bias" in w])
    assert facts["passes"] == ["unfold_weights"]


def test_xnnpack_takes_all_layers_but_the_activation(exported) -> None:  # type: ignore[no-untyped-def]
    """The runtime itself keeps only GELU (a table look-up in int8); anything else would split the graph further."""
    for scheme, islands in (("fp32", 1), ("static", LAYERS + 1), ("w8a8", LAYERS + 1)):
        _, out, _ = exported(scheme)
        interpreter = interpreters.Interpreter(str(out / "model.tflite"), num_threads=1)
        interpreter.allocate_tensors()
        planned = Counter(operation["op_name"] for operation in interpreter._get_ops_details())
        assert planned["DELEGATE"] == islands


def test_trained_weights_and_scales_are_in_the_file_bit_for_bit(exported) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported("static")
    model, graph = parsed(out / "model.tflite")
    layers = set()
    for name, operator in operations(model, graph):
        if name != "FULLY_CONNECTED":
            continue
        source, weight, bias = (graph.tensors[index] for index in operator.inputs)
        in_scale = np.float32(source.quantization.scale[0])
        scales = np.asarray(weight.quantization.scale, np.float32)
        assert not np.any(weight.quantization.zeroPoint) and weight.quantization.quantizedDimension == 0
        values, steps = stored(model, weight, np.int8), stored(model, bias, np.int32)
        layers.add((values.tobytes(), scales.tobytes(), in_scale, steps.tobytes()))
    tables = {
        stored(model, tensor, np.int8).tobytes()
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.INT8 and model.buffers[tensor.buffer].data is not None
    }
    in_scales = {layer[2] for layer in layers}
    for name, expected in weights(program).items():
        cut = expected["weight_q"][:MAX_LENGTH]  # the table of positions is cut to the file's fixed length
        assert {expected["weight_q"].tobytes(), cut.tobytes()} & tables, name
        if "bias" not in expected:
            continue
        candidates = {
            (expected["weight_q"].tobytes(), expected["w_scale"].tobytes(), in_scale, steps.tobytes())
            for in_scale in in_scales
            for steps in [
                np.round(expected["bias"] / (float(in_scale) * expected["w_scale"].astype(np.float64))).astype(np.int32)
            ]
        }
        assert candidates & layers, name
    assert len(layers) == LINEAR_LAYERS
    quantized = [tensor.quantization for tensor in graph.tensors if tensor.quantization is not None]
    scalars = [q for q in quantized if q.scale is not None and len(q.scale) == 1]
    assert {(np.float32(q.scale[0]), int(q.zeroPoint[0])) for q in scalars} == activation_scales(program)


def test_a_layer_with_float_output_is_a_dynamic_one_whose_rows_end_with_the_static_range(exported) -> None:  # type: ignore[no-untyped-def]
    program, out, facts = exported("w8a8")
    model, graph = parsed(out / "model.tflite")
    assert facts["passes"] == ["anchor_ranges", "lift_weights", "unfold_weights"]
    wide = []
    for name, operator in operations(model, graph):
        source, weight, _ = (
            (graph.tensors[index] for index in operator.inputs[:3]) if name == "FULLY_CONNECTED" else [None] * 3
        )
        if weight is not None and source.type == schema.TensorType.FLOAT32:
            values = stored(model, weight, np.int8)
            assert operator.builtinOptions.asymmetricQuantizeInputs and not values[:, -2:].any()
            wide.append(values[:, :-2].tobytes())
    contracting = [one for name, one in weights(program).items() if name.endswith(("0.output.dense", "1.output.dense"))]
    assert wide == [one["weight_q"].tobytes() for one in contracting if one["weight_q"].shape == (64, 128)]
    assert len(wide) == LAYERS


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_default_layers_give_the_programs_logits_bit_for_bit(make_program, tmp_path: Path, family: str) -> None:  # type: ignore[no-untyped-def]
    """Among them DistilBERT's head, a ReLU between two roundings."""
    program = make_program("w8a8", family)
    target.export(program.path, tmp_path, max_length=MAX_LENGTH)
    inputs, expected = golden_of(program)
    session = target.open_session(tmp_path)
    found = np.concatenate([session.run(one) for one in inputs])
    assert (np.abs(found - expected).max(-1) < 1e-5 * np.ptp(expected)).mean() >= 0.9


QUICK = ("fp32", "w8a8", "mixed")
ALL = [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in (*QUICK, *STORED)]


@pytest.mark.parametrize("scheme", ALL)
def test_golden_logits_in_plain_litert_and_in_the_session(exported, scheme: str) -> None:  # type: ignore[no-untyped-def]
    program, out, facts = exported(scheme)
    inputs, expected = golden_of(program)
    interpreter = interpreters.Interpreter(str(out / "model.tflite"), num_threads=1)
    runner = interpreter.get_signature_runner()
    plain = []
    for one in inputs:
        padding = ((0, 0), (0, MAX_LENGTH - one["input_ids"].shape[1]))
        logits = runner(**{name: np.pad(row, padding).astype(np.int32) for name, row in one.items()})["logits"]
        described = facts["outputs"][0]
        assert logits.dtype.name == described["dtype"] == ("int8" if scheme in ("w8a8", "mixed") else "float32")
        if logits.dtype == np.int8:
            logits = (logits.astype(np.float32) - described["zero_point"]) * np.float32(described["scale"])
        plain.append(logits)
    found = np.concatenate(plain)
    bound = target.golden_bound("w8a8" if scheme == "mixed" else scheme, float(np.ptp(expected)))
    assert np.abs(found - expected).max() <= bound
    if scheme != "fp32":  # ties are rare: most answers are identical
        assert (np.abs(found - expected).max(1) < 1e-6).mean() >= 0.5
    session = target.open_session(out)
    np.testing.assert_array_equal(np.concatenate([session.run(one) for one in inputs]), found)
    assert session.observed["provider"] == "XNNPACK" and session.observed["lengths"] == [MAX_LENGTH]
    with pytest.raises(BadInput, match=r"25 tokens; the artefact takes at most 24"):
        session.run({name: np.ones((1, MAX_LENGTH + 1), np.int64) for name in inputs[0]})
    session.close()


def test_the_file_is_small_and_names_no_machine(exported, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sizes = {}
    for scheme in ("fp32", "w8a8"):
        _, out, facts = exported(scheme)
        content = (out / "model.tflite").read_bytes()
        assert [path.name for path in out.iterdir()] == ["model.tflite"]
        assert facts["size_bytes"] == len(content) and facts["fixed_length"]
        assert facts["inputs"][1] == {"name": "attention_mask", "dtype": "int32", "shape": [1, MAX_LENGTH]}
        assert not [word for word in machine_words(tmp_path) if word in content]
        sizes[scheme] = len(content)
    assert sizes["w8a8"] < 0.45 * sizes["fp32"]  # of a tiny model: the graph itself weighs 0.1


FAMILIES = [("bert", None), ("distilbert", None), ("roberta", None), (None, "image"), (None, "decoder")]
QUICK_LIFTS = {("bert", "w8a8-dynamic"), ("bert", "w4"), ("bert", "fp16"), ("decoder", "w8a8-dynamic")}
LIFTS = [
    pytest.param(family, kind, scheme, marks=[] if (family or kind, scheme) in QUICK_LIFTS else pytest.mark.slow)
    for family, kind in FAMILIES
    for scheme in STORED
]


def module_of(family: str | None, kind: str | None, scheme: str, make_program: Any, tmp_path: Path) -> Any:
    """A Program at a fixed length, before any pass, with inputs for it."""
    if kind is None:
        random = np.random.default_rng(0)
        ids = torch.from_numpy(random.integers(2, VOCABULARY, size=(1, MAX_LENGTH)))
        return specialised(make_program(scheme, family).path), (ids, torch.ones_like(ids))
    folder = _kinds.make(tmp_path / kind, kind, scheme)
    inputs, _ = read_signature(folder)
    row = max(_kinds.rows(kind), key=lambda one: np.size(next(iter(one.values()))))
    values = tuple(torch.as_tensor(np.array([row[one["name"]]])) for one in inputs)
    return specialise(load_program(folder), inputs, values[0].shape[1]).module(), values


@pytest.mark.parametrize(("family", "kind", "scheme"), LIFTS)
def test_lifting_weights_keeps_every_bit(make_program, tmp_path, family, kind, scheme: str) -> None:  # type: ignore[no-untyped-def]
    """Weights: the very floats as before. Dynamic layers: the Program run in integers, of which the kernel's part is
    put back by hand."""
    module, values = module_of(family, kind, scheme, make_program, tmp_path)
    with torch.no_grad():
        before = module(*values)
        lifted = passes.lift_weights(module)
        linears = [node for node in module.graph.nodes if node.target is torch.ops.aten.linear.default]
        assert len([one for one in lifted if one.form == "dynamic"]) == (len(linears) if "dynamic" in scheme else 0)
        assert len(lifted) == len({one.name for one in lifted}) >= len(linears) > 6
        if "dynamic" in scheme:
            expected = integer.to_integers(module_of(family, kind, scheme, make_program, tmp_path / "again")[0])
            before, weights_of = expected(*values), {one.name: one for one in lifted}
            for node in linears:
                one = weights_of[node.args[1].target]
                bias = node.args[2] if len(node.args) > 2 else None
                module.register_buffer(f"{one.name}_q", torch.from_numpy(one.values))
                module.register_buffer(f"{one.name}_scale", torch.from_numpy(one.scale))
                with module.graph.inserting_before(node):
                    stored = [module.graph.get_attr(f"{one.name}_{part}") for part in ("q", "scale")]
                    layer = module.graph.call_function(integer.int8_linear_tokens, (node.args[0], *stored, bias))
                node.replace_all_uses_with(layer)
            integer.round_floats(module.graph)
            module.recompile()
        assert torch.equal(module(*values), before) and before.unique().numel() > 1


def test_a_dynamic_layer_in_the_runtime_is_the_integer_run_bit_for_bit() -> None:
    """Tokens of all sizes and signs, of zeros, of one number, and such that round half way."""
    litert_torch = pytest.importorskip("litert_torch")
    torch.manual_seed(0)
    width, outputs, tokens = 96, 40, 256
    weight_q = torch.randint(-127, 128, (outputs, width), dtype=torch.int8)
    scale, bias = torch.rand(outputs) * 0.01 + 1e-4, torch.randn(outputs)
    x = torch.randn(1, tokens, width) * torch.logspace(-4, 3, tokens)[None, :, None]
    x[0, ::5], x[0, 1::5], x[0, 2::5] = x[0, ::5].abs(), -x[0, 1::5].abs(), x[0, 2::5] + 7
    x[0, 3], x[0, 4], x[0, 8], x[0, 9] = 0, 0.25, -3, torch.arange(width) - width / 2

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, lifted_0: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, lifted_0, bias)

    example = {"x": x, "lifted_0": torch.zeros(outputs, width)}
    content = litert_torch.convert(Layer().eval(), sample_kwargs=example).model_content()
    weight = passes.Stored("lifted_0", weight_q.numpy(), scale.numpy(), "dynamic")
    interpreter = interpreters.Interpreter(model_content=passes.store_weights(content, [weight]), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.numpy())
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_array_equal(found, integer.int8_linear_tokens(x, weight_q, scale, bias).numpy())
    with pytest.raises(BadInput, match="the converter lost 'other'"):
        passes.store_weights(content, [replace(weight, name="other")])


@pytest.mark.parametrize("scheme", [pytest.param("mixed"), *(pytest.param(s, marks=pytest.mark.slow) for s in STORED)])
def test_weights_the_converter_did_not_see_are_in_the_file_bit_for_bit(exported, scheme: str) -> None:  # type: ignore[no-untyped-def]
    program, out, facts = exported(scheme)
    model, graph = parsed(out / "model.tflite")
    made_by = {int(one.outputs[0]): (name, one) for name, one in operations(model, graph)}
    kinds = schema.TensorType

    def origin(index: int) -> Any:
        while index in made_by:
            name, one = made_by[index]
            assert name in ("DEQUANTIZE", "RESHAPE"), name  # float arithmetic, and nothing else on the way
            index = int(one.inputs[0])
        return graph.tensors[index]

    found, plain = set(), 0
    for name, operator in operations(model, graph):
        if name != "FULLY_CONNECTED":
            continue
        x, weight = graph.tensors[operator.inputs[0]], graph.tensors[operator.inputs[1]]
        if x.type == kinds.INT8:
            plain += 1
            continue
        dynamic = weight.type == kinds.INT8
        assert operator.builtinOptions.asymmetricQuantizeInputs == dynamic == (scheme in ("w8a8-dynamic", "mixed"))
        source = origin(int(operator.inputs[1]))
        data = np.asarray(model.buffers[source.buffer].data)
        scales = b"" if source.quantization is None else np.asarray(source.quantization.scale, np.float32).tobytes()
        found.add((source.type, data.tobytes(), scales))
    state = load_program(program.path).state_dict
    expected = set()
    for name in [name for name in state if name.endswith(".weight_q") and "embeddings" not in name]:
        values, scale = state[name].numpy(), state.get(name.replace("weight_q", "w_scale"), torch.empty(0)).numpy()
        if scheme == "mixed" and (values.shape[0] != 64 or values.shape[1] != 128):
            continue
        if scheme == "w4":
            pairs = (values.reshape(-1, 2).astype(np.int16) & 15) << np.array([0, 4])
            expected.add((kinds.INT4, pairs.sum(1).astype(np.uint8).tobytes(), scale.tobytes()))
        else:
            expected.add((kinds.FLOAT16 if scheme == "fp16" else kinds.INT8, values.tobytes(), scale.tobytes()))
    assert found == expected and len(found) + plain == LINEAR_LAYERS
    assert len(found) == (LAYERS if scheme == "mixed" else LINEAR_LAYERS) and "lift_weights" in facts["passes"]
    table = state["model.bert.embeddings.word_embeddings.weight_q"].numpy()
    lookups = [graph.tensors[one.inputs[1]] for name, one in operations(model, graph) if name == "EMBEDDING_LOOKUP"]
    assert table.tobytes() in [np.asarray(model.buffers[one.buffer].data).tobytes() for one in lookups]
    # the size that the bits promise: no second copy of anything, in any other form
    held = sum(0 if one.data is None else len(one.data) for one in model.buffers)
    promised = sum(value.numel() * value.element_size() for name, value in state.items() if not name.endswith("w_zero"))
    halved = sum(value.numel() for name, value in state.items() if name.endswith("weight_q") and value.ndim == 2)
    if scheme == "w4":
        promised -= (
            halved - sum(v.numel() for n, v in state.items() if "embeddings" in n and n.endswith("weight_q"))
        ) / 2
    assert held <= promised + 8000  # masks, shapes, names; half of one layer of 64 x 64 in float32
    interpreter = interpreters.Interpreter(str(out / "model.tflite"), num_threads=1)
    assert "lifted" not in str(sorted(interpreter.get_signature_runner().get_input_details()))


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_mediapipes_form_has_three_inputs_its_files_and_the_same_answers(exported, scheme: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported(scheme)
    for name in ("model.tflite", "golden.json"):
        shutil.copy((out if name.startswith("model") else program.path) / name, tmp_path)
    words, labels = [f"w{index}" for index in range(VOCABULARY)], ["a", "b", "c", "d", "e"]
    told = {"task": "text-classification", "name": "tiny", "words": words, "labels": labels}
    content = target.for_mediapipe(tmp_path, **told)
    assert content == target.for_mediapipe(tmp_path, **told)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {one.filename: one.compress_type for one in archive.infolist()} == {"vocab.txt": 0, "labels.txt": 0}
        assert (
            archive.read("labels.txt").decode().split() == labels
            and archive.read("vocab.txt").decode().split() == words
        )
    interpreter = interpreters.Interpreter(model_content=content, num_threads=1)
    inputs, (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert [(one["dtype"], one["shape"].tolist()) for one in inputs] == [(np.int32, [1, MAX_LENGTH])] * 3
    assert output["dtype"] == np.float32
    model = schema.Model.GetRootAs(content, 0)
    [place] = [i for i in range(model.MetadataLength()) if model.Metadata(i).Name() == b"TFLITE_METADATA"]
    metadata = model.Buffers(model.Metadata(place).Buffer()).DataAsNumpy().tobytes()
    assert metadata[4:8] == b"M001"
    for name in (b"ids", b"mask", b"segment_ids", b"probability", b"vocab.txt", b"labels.txt"):
        assert name + b"\0" in metadata
    pooled = target.for_mediapipe(tmp_path, **{**told, "task": "sentence-similarity"})
    assert zipfile.ZipFile(io.BytesIO(pooled)).namelist() == ["vocab.txt"]


def test_a_mediapipe_form_that_answers_otherwise_is_refused(exported, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported("fp32")
    shutil.copy(out / "model.tflite", tmp_path)
    shutil.copy(program.path / "golden.json", tmp_path)
    monkeypatch.setattr(_mediapipe, "expected", lambda logits, task: logits)
    with pytest.raises(BadInput, match="MediaPipe's form of it answers otherwise"):
        target.for_mediapipe(tmp_path, task="text-classification", name="tiny", words=[], labels=[])


@pytest.mark.slow
def test_same_program_same_bytes_in_another_process(exported, tmp_path) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported("w8a8")
    code = (
        "import sys; from pathlib import Path; from edgekd.targets import litert;"
        f"litert.export(Path(sys.argv[1]), Path(sys.argv[2]), max_length={MAX_LENGTH})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(program.path), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    digests = [hashlib.sha256((folder / "model.tflite").read_bytes()).hexdigest() for folder in (out, tmp_path)]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_other_families_run_in_integers_too(make_program, tmp_path, family: str) -> None:  # type: ignore[no-untyped-def]
    program = make_program("w8a8", family)
    target.export(program.path, tmp_path, max_length=MAX_LENGTH)
    session = target.open_session(tmp_path)
    inputs, expected = golden_of(program)
    found = np.concatenate([session.run(one) for one in inputs])
    assert np.abs(found - expected).max() <= target.golden_bound("w8a8", float(np.ptp(expected)))


def test_missing_packages_and_broken_files_say_so(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "model.tflite").write_bytes(b"not a model")
    with pytest.raises(Environment, match="does not open it"):
        target.open_session(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[litert\]'"):
        target.export(tmp_path, tmp_path, max_length=8)
