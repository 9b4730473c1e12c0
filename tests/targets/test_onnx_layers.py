"""The ONNX target's spelling of every kind of layer: the reference's numbers, integer kernels, promised bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import _kinds
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from _programs import LINEAR_LAYERS, MAX_LENGTH, golden_of, make
from onnx import numpy_helper, parser

from edgekd.artifact import Artifact
from edgekd.errors import BadInput
from edgekd.quantize import integer, reference
from edgekd.quantize import scheme as schemes
from edgekd.targets import _onnx_passes as passes
from edgekd.targets import onnx as target

INTEGER_KERNELS = {"QGemm", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul"}
MIXED = {
    "w8a8+dynamic": replace(schemes.SCHEMES["w8a8"], overrides={schemes.CONTRACTING: "w8a8-dynamic"}),
    "w8a8+float-output": replace(schemes.SCHEMES["w8a8"], overrides={"*": "w8a8-float-output"}),
    "w4+all": replace(
        schemes.SCHEMES["w4"],
        overrides={"*query": "w8a8", "*key": "fp32", "*value": "w8", schemes.CONTRACTING: "w8a8-dynamic"},
    ),
}
FLOAT = ("fp16", "w8", "w4")
SLOW_FLOAT = [pytest.param(scheme, marks=[] if scheme == "w8" else pytest.mark.slow) for scheme in FLOAT]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Artifact, Path, dict]]:
    """``exported(scheme, family="bert")`` -> (Program, folder of its artefact, facts), made once."""

    @cache
    def made(scheme: str, family: str = "bert") -> tuple[Artifact, Path, dict]:
        folder = tmp_path_factory.mktemp("layers")
        with pytest.MonkeyPatch.context() as patch:
            for name, mixed in MIXED.items():
                patch.setitem(schemes.SCHEMES, name, mixed)
            program = make(folder / "program", scheme, family)
        return program, folder, target.export(program.path, folder, max_length=MAX_LENGTH)

    return made


def session(model: bytes | Path, optimised: Path | None = None, optimise: bool = True) -> onnxruntime.InferenceSession:
    """Plain onnxruntime with exact int8 products, and the optimised graph as a file where asked for."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(target.EXACT_INT8, "1" if target.int8_products_saturate() else "0")
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def graph(text: str, **constants: np.ndarray) -> ir.Model:
    """A graph in ONNX's text form, with its constants."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20, "edgekd" : 1]>\nmain {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(proto)


def run(model: ir.Model, x: np.ndarray, *, optimise: bool = True) -> np.ndarray:
    target._set_opsets(model)
    model.opset_imports.pop("edgekd", None)
    found: np.ndarray = session(ir.to_proto(model).SerializeToString(), optimise=optimise).run(None, {"x": x})[0]
    return found


def hard_tokens(width: int) -> np.ndarray:
    """Tokens on which a careless spelling errs: zeros, one sign only, extremes, ties, outliers, and plain ones."""
    random = np.random.default_rng(0)
    x = random.normal(size=(600, width)).astype(np.float32)
    x[0] = 0
    x[1:20], x[20:40] = np.abs(x[1:20]), -np.abs(x[20:40])
    x[40:60] *= np.float32(1e-30)
    x[60:80] *= np.float32(1e30)
    x[80:200] = random.integers(-255, 256, size=(120, width)) / 2  # half steps of a range of 255
    x[80:200, :2] = [-127.5, 127.5]
    x[200:300, 3] = random.uniform(-50, 50, 100)
    return x


TOKENS = """(float[t, 96] x) => (float[t, 40] y) {
    through = edgekd.ThroughTokens(x)
    weight = DequantizeLinear <axis = 0> (weight_q, scale, zero)
    y = Gemm <transB = 1> (through, weight, bias)
}"""


def token_layer() -> tuple[dict[str, np.ndarray], ir.Model]:
    random = np.random.default_rng(1)
    weight_q = random.integers(-127, 128, size=(40, 96)).astype(np.int8)
    weight_q[0], weight_q[1] = 127, -127  # sums that 16 bits do not hold
    scale = random.uniform(0.001, 0.01, 40).astype(np.float32)
    bias = random.normal(size=40).astype(np.float32)
    numbers = {"weight_q": weight_q, "scale": scale, "zero": np.zeros(40, np.int8), "bias": bias}
    return numbers, graph(TOKENS, **numbers)


@pytest.mark.parametrize("optimise", [True, False])
def test_tokens_become_the_integers_of_the_reference_bit_for_bit(optimise: bool) -> None:
    _, model = token_layer()
    x = hard_tokens(96)
    steps, zero = reference.token_numbers(torch.from_numpy(x))
    expected = {
        "integers": (reference.quantize_tokens(torch.from_numpy(x), steps, zero) + 128).to(torch.uint8),
        "zero": zero,
        "scale": 1 / steps,
    }
    assert passes.spell_tokens(model) == 1
    values = {value.name: value for node in model.graph for value in node.outputs}
    usable = x.max(1) != x.min(1)  # of a token of zeros the scale says nothing
    for name, numbers in expected.items():
        (model.graph.outputs[0],) = [values[f"x_{name}"]]
        model.graph.outputs[0].type = ir.TensorType(ir.DataType.UINT8 if name == "integers" else ir.DataType.FLOAT)
        found = run(model, x, optimise=optimise)
        rows = usable if name == "scale" else slice(None)
        np.testing.assert_array_equal(found[rows], numbers.numpy()[rows], err_msg=name)


def test_a_token_layer_gives_the_reference_numbers_whatever_its_neighbours() -> None:
    """In an optimised session: where the CPU saturates, exact products are an optimiser's work."""
    numbers, model = token_layer()
    x = hard_tokens(96)
    assert passes.spell_tokens(model) == 1
    found = run(model, x)
    tensors = [torch.from_numpy(numbers[name]) for name in ("weight_q", "scale", "bias")]
    expected = integer.int8_linear_tokens(torch.from_numpy(x), *tensors).numpy()
    steps, zero = reference.token_numbers(torch.from_numpy(x))
    centred = (reference.quantize_tokens(torch.from_numpy(x), steps, zero) - zero).numpy().astype(np.int64)
    sums = (centred @ numbers["weight_q"].T.astype(np.int64)).astype(np.float32)
    product = sums * (1 / steps).numpy() * numbers["scale"]
    np.testing.assert_array_equal(found, product + numbers["bias"])  # the reference, but for its fused multiply-add
    assert (np.abs(found - expected) <= np.spacing(np.abs(product) + np.abs(numbers["bias"]))).all()
    for rows in (slice(0, 1), slice(50, 57), slice(150, 151), slice(250, 300)):
        np.testing.assert_array_equal(run(model, x[rows]), found[rows])


def test_layers_that_read_one_tensor_quantize_it_once(exported: Callable) -> None:
    _, folder, facts = exported("w8a8-dynamic")
    kinds = Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)
    inputs = 4 * 2 + 2  # of two layers, the pooler and the head
    assert kinds["ReduceMax"] == kinds["ReduceMin"] == inputs and kinds["MatMulIntegerToFloat"] == LINEAR_LAYERS
    assert facts["passes"] == ["join_tokens", "flatten_tokens", "spell_tokens"]


PLAIN = {
    "Gemm": "y = Gemm <transB = 1> (x, weight, bias)\n}",
    "MatMul": "turned = Transpose <perm = [1, 0]> (weight)\nsums = MatMul(x, turned)\ny = Add(sums, bias)\n}",
}
WEIGHTS = {
    "spell_weights": "weight = DequantizeLinear <axis = 0> (stored, scale, zero)",
    "spell_groups": "weight = edgekd.DequantizeGroups(stored, scale)",
    "spell_halves": "weight = edgekd.Widen(stored)",
}


@pytest.mark.parametrize("product", PLAIN)
@pytest.mark.parametrize("name", WEIGHTS)
def test_float_layers_keep_every_bit(name: str, product: str) -> None:
    """Numbers that are multiples of a power of two: every order of summation gives the same bits."""
    random = np.random.default_rng(2)
    shape = "t, 64" if product == "Gemm" else "b, t, 64"
    x = random.integers(-64, 65, size=(5, 64) if product == "Gemm" else (2, 5, 64)).astype(np.float32)
    if name == "spell_halves":
        constants = {"stored": random.integers(-64, 65, size=(24, 64)).astype(np.float16) / np.float16(64)}
        weight = constants["stored"].astype(np.float32)
    else:
        groups, top = (2, 7) if name == "spell_groups" else (1, 127)
        stored = random.integers(-top, top + 1, size=(24, 64)).astype(np.int8)
        scale = np.exp2(random.integers(-6, 0, size=(24, groups))).astype(np.float32)
        weight = stored * np.repeat(scale, 64 // groups, 1)
        constants = {"stored": stored, "scale": scale if groups > 1 else scale[:, 0]}
        constants |= {"zero": np.zeros(24, np.int8)} if groups == 1 else {}
    bias = random.integers(-64, 65, size=24).astype(np.float32)
    text = f"(float[{shape}] x) => (float[{shape[:-2]}24] y) {{\n{WEIGHTS[name]}\n{PLAIN[product]}"
    model = graph(text, **constants, bias=bias)
    assert getattr(passes, name)(model) == 1
    assert {"DequantizeLinear"}.isdisjoint(node.op_type for node in model.graph)
    for optimise in (True, False):
        np.testing.assert_array_equal(run(model, x, optimise=optimise), x @ weight.T + bias)


@pytest.mark.parametrize("scheme", ["w8a8-dynamic", "w8a8+float-output", "w8a8+dynamic", "w4+all", *SLOW_FLOAT])
def test_golden_logits_and_the_kernels_that_give_them(exported: Callable, scheme: str, tmp_path: Path) -> None:
    program, folder, _ = exported(scheme)
    opened = target.open_session(folder)
    check_golden(program, opened, "w8a8" if scheme in MIXED else scheme)
    session(folder / "model.onnx", tmp_path / "optimised.onnx")
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = Counter(node.op_type for node in optimised.node)
    found = {name: kinds[name] for name in (*INTEGER_KERNELS, "MatMulNBits") if kinds[name]}
    assert found == {
        "w8a8-dynamic": {"MatMulIntegerToFloat": LINEAR_LAYERS},
        "w8a8+float-output": {"QGemm": LINEAR_LAYERS},
        "w8a8+dynamic": {"QGemm": LINEAR_LAYERS - 2, "MatMulIntegerToFloat": 2},
        "w4+all": {"QGemm": 2, "MatMulIntegerToFloat": 2, "MatMulNBits": LINEAR_LAYERS - 8},
        "w4": {"MatMulNBits": LINEAR_LAYERS},
    }.get(scheme, {})
    levels = {a.i for node in optimised.node for a in node.attribute if a.name == "accuracy_level"}
    assert levels == ({1} if "MatMulNBits" in found else set())
    constants = {tensor.name for tensor in optimised.initializer}
    products = [node for node in optimised.node if node.op_type in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")]
    floats = [node.op_type for node in products if constants & set(node.input[:2])]
    assert len(floats) == LINEAR_LAYERS - sum(found.values())  # layers that are float run on constants computed once


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
@pytest.mark.parametrize("scheme", ["w8a8-dynamic", "w4"])
@pytest.mark.slow
def test_other_families(exported: Callable, scheme: str, family: str) -> None:
    program, folder, _ = exported(scheme, family)
    check_golden(program, target.open_session(folder), scheme)
    kinds = Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat" if scheme == "w8a8-dynamic" else "MatMulNBits"] == LINEAR_LAYERS


def check_golden(program: Artifact, opened: target._Session, scheme: str) -> None:
    inputs, expected = golden_of(program)
    found = np.concatenate([opened.run(one) for one in inputs])
    deltas, spread = np.abs(found - expected).max(1), float(np.ptp(expected))
    assert deltas.max() <= target.golden_bound(scheme, spread)
    assert (deltas < 1e-5 * spread).mean() >= (1.0 if scheme in FLOAT else 0.5)


@pytest.mark.parametrize("kind", [pytest.param("image"), pytest.param("decoder", marks=pytest.mark.slow)])
def test_patches_and_decoders_run_in_integers_by_token(kind: str, tmp_path: Path) -> None:
    """Every layer of theirs: two lengths in one graph (patches, and tokens with a class), and layers without a bias."""
    program = _kinds.make(tmp_path / "program", kind, "w8a8-dynamic")
    target.export(program, tmp_path, max_length=_kinds.MAX_LENGTH)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    layers = [name for name in torch.export.load(program / "program.pt2").state_dict if name.endswith(".w_zero")]
    assert kinds["MatMulIntegerToFloat"] == len(layers) > 6
    found = onnx.load(tmp_path / "model.onnx").graph
    values = {value.name for value in found.initializer}
    assert not [n.name for n in found.node if n.op_type in ("MatMul", "Gemm") and values & set(n.input[:2])]
    opened = target.open_session(tmp_path)
    inputs, expected = _golden(program)
    spread = float(np.ptp(expected))
    deltas = [np.abs(opened.run(one) - theirs).max() for one, theirs in zip(inputs, expected, strict=True)]
    assert max(deltas) <= target.golden_bound("w8a8-dynamic", spread)
    assert (np.array(deltas) < 1e-5 * spread).mean() >= 0.5


def _golden(program: Path) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    from edgekd.artifact import read_json

    golden = read_json(program / "golden.json")
    types = {one["name"]: one["dtype"] for one in golden["signature"]["inputs"]}
    count = len(golden["outputs"]["logits"])
    inputs = [{k: np.array([v[i]], types[k]) for k, v in golden["inputs"].items()} for i in range(count)]
    return inputs, np.array(golden["outputs"]["logits"], np.float32)[:, None]


@pytest.mark.parametrize("scheme", ["w8a8-dynamic", *SLOW_FLOAT])
def test_the_file_holds_the_promised_bits(exported: Callable, scheme: str) -> None:
    program, folder, _ = exported(scheme)
    state = torch.export.load(program.file("program.pt2")).state_dict
    weights = {name: tensor.numel() for name, tensor in state.items() if name.endswith("weight_q")}
    tables = {name: count for name, count in weights.items() if "embeddings" in name}
    bytes_of = {"w8a8-dynamic": 1, "fp16": 2, "w8": 1, "w4": 0.5}[scheme]
    table_bytes = 2 if scheme == "fp16" else 1
    promised = bytes_of * (sum(weights.values()) - sum(tables.values())) + table_bytes * sum(tables.values())
    stored = Counter()
    for tensor in onnx.load(folder / "model.onnx").graph.initializer:
        array = numpy_helper.to_array(tensor)
        stored[array.dtype.name if array.ndim > 1 else "vector"] += array.nbytes
    integers = stored["int8"] + stored["uint8"] + stored["float16"]
    assert integers == promised
    assert stored["float32"] < 0.1 * promised  # scales of embedding rows, token types


def test_a_batch_with_padding_changes_no_answer(exported: Callable) -> None:
    _, folder, _ = exported("w8a8-dynamic")
    opened, random = session(folder / "model.onnx"), np.random.default_rng(3)
    ids = random.integers(2, 2000, size=(6, 16))
    kept = random.integers(3, 17, size=6)
    mask = (np.arange(16) < kept[:, None]).astype(np.int64)
    together = opened.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    rows = [{"input_ids": i[None, :n], "attention_mask": m[None, :n]} for i, m, n in zip(ids, mask, kept, strict=True)]
    alone = np.concatenate([opened.run(None, row)[0] for row in rows])
    deltas = np.abs(together - alone).max(1) / np.ptp(alone)
    assert deltas.max() < 0.1 and (deltas < 1e-5).mean() >= 0.5  # a neighbour would move all of them


@pytest.mark.parametrize(
    "scheme", ["w8a8-dynamic", *(pytest.param(s, marks=pytest.mark.slow) for s in ("w4+all", "fp16"))]
)
def test_same_program_same_bytes(exported: Callable, scheme: str, tmp_path: Path) -> None:
    program, folder, _ = exported(scheme)
    target.export(program.path, tmp_path, max_length=MAX_LENGTH)
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


def test_what_has_no_spelling_is_refused() -> None:
    numbers, _ = token_layer()
    lone = "(float[t, 96] x) => (float[t, 96] y) {\nthrough = edgekd.ThroughTokens(x)\ny = Relu(through)\n}"
    with pytest.raises(BadInput, match="read by Relu, which is no int8 linear layer"):
        passes.spell_tokens(graph(lone))
    model = graph(TOKENS, **(numbers | {"zero": np.ones(40, np.int8)}))
    with pytest.raises(BadInput, match="is not symmetric int8"):
        passes.spell_tokens(model)
    with pytest.raises(BadInput, match=r"is not \[tokens, width\]"):
        passes.spell_tokens(graph(TOKENS.replace("t, 96", "b, t, 96"), **numbers))
    chain = """(float[t, 96] x, float[t, 96] other) => (float[t, 96] y) {
        scale, zero = edgekd.ChooseTokens(x)
        q = edgekd.QuantizeTokens(other, scale, zero)
        y = edgekd.DequantizeTokens(q, scale, zero)
    }"""
    with pytest.raises(BadInput, match="not dequantized as it was quantized"):
        passes.join_tokens(graph(chain))
    unknown = "(float[t, 96] x) => (float[t, 96] y) {\ny = edgekd.Unknown(x)\n}"
    with pytest.raises(BadInput, match=r"\(Unknown\) has no spelling"):
        target.legalise(graph(unknown))
