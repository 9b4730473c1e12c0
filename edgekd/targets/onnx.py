"""ONNX: one file for onnxruntime on servers, phones and in the browser, with dynamic batch and length.

The exporter's own translation of a quantized Program is right but slow: onnxruntime finds no integer kernel
in it and runs float. The passes below respell it, number for number, so that every quantized linear layer
becomes one ``QGemm``: uint8 activations, int8 weights, the bias as int32, one requantization. Nothing here
chooses a scale. Refused: a bias off the grid ``s_in * s_weight``, a quantized layer in a form that the
passes do not know, and a model over 2 GB (external data would make two files of one artefact).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts
from edgekd.errors import BadInput, Environment
from edgekd.targets._contract import float_bound, has_sequence, load_program, read_signature, require

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

suffix = ".onnx"
extra = "onnx"
distributions = ("onnx-ir", "onnxruntime", "onnxscript", "torch")
accepts = frozenset({"fp32", "w8a8"})
refuses: dict[str, str] = {}
slow = False
benchable = True

PROVIDERS = ["CPUExecutionProvider"]
OPSET = 20  # LayerNormalization (17) and Gelu (20) as single nodes; onnxruntime 1.17 and later
SIZE_LIMIT_BYTES = 2**31 - 1  # protobuf's
EXACT_INT8 = "session.x64quantprecision"  # session option: "1" for exact products where the CPU saturates
VNNI_CAVEAT = f"on x86 CPUs without VNNI set {EXACT_INT8}=1: onnxruntime's default kernels saturate there"
# Ops that treat every token alike, so that [batch, sequence, width] may be [tokens, width].
TOKENWISE = frozenset("Add DequantizeLinear Gelu LayerNormalization MatMul Mul QuantizeLinear Relu Tanh".split())


def golden_bound(scheme: str, logit_range: float) -> float:
    """Largest allowed |logit difference| to the Program's golden logits; ``logit_range`` = max - min of those.

    ``fp32``: the same operations in another order of summation, about 1e-6 relative per layer; 5e-6 measured.

    ``w8a8``: the integer matrix products are exact on both sides, but LayerNorm, softmax and GELU between them
    run in float, where another summation order or erf differs by 1e-6 relative, and ``QuantizeLinear`` divides
    where the Program multiplies by a reciprocal. Now and then that moves a value across a rounding tie: one
    activation differs by one step of 255, and the layers behind spread it. Most answers stay identical, and
    the largest difference is an outlier (300 texts: 3 layers, 98 % identical, 2 % of the range; 6 layers,
    94 % identical, 13 %). So this bound finds gross errors; agreement over the test split is the finer judge.
    """
    return float_bound(logit_range) if scheme == "fp32" else 0.2 * logit_range


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.onnx``: the Program's inputs, batch and sequence dynamic -> ``logits``.

    ``max_length`` (tokens) is recorded; the file itself takes any length up to what the Program was made for.
    Same Program, same bytes.
    """
    require("onnx_ir", extra)
    require("onnxscript", extra)
    inputs, outputs = read_signature(program)
    model = _translate(program, [one["name"] for one in inputs])
    passes = legalise(model)
    _strip(model, inputs)
    content = _serialise(model)
    path = out / f"model{suffix}"
    path.write_bytes(content)
    return {
        "file": path.name,
        "size_bytes": len(content),
        "inputs": inputs,
        "outputs": outputs,
        "max_length": max_length if any(map(has_sequence, inputs)) else None,
        "fixed_length": False,
        "opset": OPSET,
        "passes": passes,
        "caveats": [VNNI_CAVEAT] if passes else [],
    }


def _translate(program: Path, names: Sequence[str]) -> ir.Model:
    import torch

    found = torch.onnx.export(
        load_program(program),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=["logits"],
        custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
        external_data=False,
        verbose=False,
    )
    assert found is not None
    return found.model


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention over [batch, heads, sequence, width], with a boolean mask or none, in a few plain nodes.

    The exporter's own translation computes shapes at run time to transpose the key, and guards against rows
    with nothing to attend to (NaN). Every example has a token, so the lowest float serves as minus infinity:
    its exponential is exactly 0, and no NaN can arise.
    """
    from onnxscript import opset20 as op

    if dropout_p or is_causal or enable_gqa:
        raise BadInput("attention that is causal, grouped or has dropout is not known", where="onnx")
    factor = scale if scale is not None else 1 / math.sqrt(query.shape[-1])
    root = op.Constant(value_float=math.sqrt(factor))  # on both sides, as PyTorch does
    scores = op.MatMul(op.Mul(query, root), op.Mul(op.Transpose(key, perm=[0, 1, 3, 2]), root))
    if attn_mask is not None:
        lowest = op.Constant(value_float=-3.4028234663852886e38)
        scores = op.Add(scores, op.Where(attn_mask, op.Constant(value_float=0.0), lowest))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


# The passes. Each changes the spelling, never a number, and can run alone (the tests do so).


def legalise(model: ir.Model) -> list[str]:
    """Respell ``model`` in place for onnxruntime's integer kernels; returns the names of passes that acted.

    A float model is left alone. Raises BadInput when a quantized layer keeps a spelling that onnxruntime
    would run in float.
    """
    if not any(node.op_type == "QuantizeLinear" for node in model.graph):
        return []
    passes = (shift_to_uint8, flatten_tokens, spell_as_gemm)
    acted = [step.__name__ for step in passes if step(model)]
    _drop_unused(model)
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and _array(node.inputs[0]) is not None:
            users = {user.op_type for user, _ in node.outputs[0].uses()}
            if users - {"Gemm"}:
                what = f"'{node.inputs[0].name}' is read by {', '.join(sorted(users))}, not by Gemm"
                raise BadInput(f"{what}, and would run in float", where="onnx")
    return acted


def shift_to_uint8(model: ir.Model) -> int:
    """Activations from int8 with zero point z to uint8 with z + 128: the same numbers.

    onnxruntime's x86 kernels multiply uint8 by int8. Returns the number of quantizers changed.
    """
    import numpy as np

    changed = 0
    for node in list(model.graph):
        zero = _array(node.inputs[2]) if node.op_type == "QuantizeLinear" else None
        if zero is None or zero.dtype != np.int8:
            continue
        shifted = _constant(model, f"zero_point_u8_{int(zero) + 128}", np.array(int(zero) + 128, np.uint8))
        for user, _ in node.outputs[0].uses():
            if user.op_type != "DequantizeLinear":
                raise BadInput(f"'{node.outputs[0].name}' is int8 and used by {user.op_type}", where="onnx")
            user.replace_input_with(2, shifted)
        node.replace_input_with(2, shifted)
        node.outputs[0].dtype = shifted.dtype
        changed += 1
    return changed


def flatten_tokens(model: ir.Model) -> int:
    """Run the token-wise layers on [batch * sequence, width]; Reshape only where such a region begins or ends.

    A sequence is the tokens of a text or the patches of an image. ``Gemm`` is two-dimensional, and a Reshape
    around every one would cost what it gains. Returns the number of nodes that now run flat.
    """
    import numpy as np

    region = _tokenwise_region(model)
    inside = set(region)
    position = {node: index for index, node in enumerate(model.graph)}
    entries: dict[ir.Value, ir.Value] = {}
    for node in region:
        for index, value in enumerate(node.inputs):
            if _leading(model, value) is None or value.producer() in inside:
                continue
            if value not in entries:
                shape = _constant(model, f"flat_{value.shape[2]}", np.array([-1, value.shape[2]], np.int64))
                made = value.producer()
                whole = made.inputs[0] if made is not None and _reshapes_freely(made) else value
                entries[value] = _insert(model, node, "Reshape", [whole, shape], f"{value.name}_flat", like=value)
                entries[value].shape = _flat_shape(value)
            node.replace_input_with(index, entries[value])
    for node in region:
        result = node.outputs[0]
        leaving = [use for use in result.uses() if use.node not in inside and not _reshapes_freely(use.node)]
        if leaving:
            first = min((use.node for use in leaving), key=position.__getitem__)
            back = _unflatten(model, first, result)
            for user, index in leaving:
                user.replace_input_with(index, back)
        result.shape = _flat_shape(result)
    return len(region)


def _tokenwise_region(model: ir.Model) -> list[ir.Node]:
    """The token-wise nodes that are connected to a matrix product with a constant, in graph order."""

    def fits(node: ir.Node) -> bool:
        result = node.outputs[0]
        leading = _leading(model, result)
        if node.op_type not in TOKENWISE or leading is None or result.is_graph_output():
            return False
        if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) not in (-1, 2):
            return False
        others = [value for value in node.inputs if value is not None and _leading(model, value) != leading]
        rank = 2 if node.op_type == "MatMul" else 1  # a weight, or one number per feature
        return all(value.shape is not None and len(value.shape) <= rank for value in others)

    todo = [node for node in model.graph if node.op_type == "MatMul" and fits(node)]
    inside: set[ir.Node] = set()
    while todo:
        node = todo.pop()
        if node in inside or not fits(node):
            continue
        inside.add(node)
        todo += [user for user, _ in node.outputs[0].uses()]
        producers = (value.producer() for value in node.inputs if value is not None)
        todo += [producer for producer in producers if producer is not None]
    return [node for node in model.graph if node in inside]


def spell_as_gemm(model: ir.Model) -> int:
    """``MatMul(x, Transpose(DQ(W))) + b`` becomes ``Gemm(x, DQ(W), DQ(b_int32))``, which runs as one QGemm.

    W keeps the Program's layout [out, in] and scales. The int32 bias is b / (s_in * s_weight), an integer in
    the Program (BadInput if not); its scale is that product. Returns the number of layers.
    """
    import numpy as np
    import onnx_ir as ir

    changed = 0
    for node in list(model.graph):
        layer = _quantized_linear(node)
        if layer is None:
            continue
        source, weight, bias = layer
        scale = _scale(source).astype(np.float64) * _scale(weight).astype(np.float64)
        steps = _array(bias).astype(np.float64) / scale
        off = np.abs(steps - np.round(steps)) - np.abs(steps) * 2.0**-23  # the bias itself is a float32
        if off.max() > 0.01 or np.abs(steps).max() >= 2**31 - 1:
            raise BadInput(f"'{bias.name}' is not an int32 multiple of input scale x weight scale", where="onnx")
        parts = {
            "int32": np.round(steps).astype(np.int32),
            "scale": scale.astype(np.float32),
            "zero_point": np.zeros(len(steps), np.int32),
        }
        result = node.outputs[0]  # names the layer: the exporter stores equal biases once
        stored_bias = [_constant(model, f"{result.name}_bias_{name}", part) for name, part in parts.items()]
        whole = _insert(model, node, "DequantizeLinear", stored_bias, f"{result.name}_bias", like=bias, axis=0)
        # A zero point of its own: onnxruntime's rewrite for x86 without VNNI fails on a shared one.
        stored, _, zero = weight.producer().inputs
        weight.producer().replace_input_with(2, _constant(model, f"{stored.name}_zero_point", _array(zero)))
        gemm = _insert(model, node, "Gemm", [source, weight, whole], f"{result.name}_gemm", like=result, transB=1)
        ir.convenience.replace_all_uses_with(result, gemm)
        changed += 1
    return changed


def _quantized_linear(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """(dequantized input, dequantized weight [out, in], float bias) when ``node`` ends a quantized linear layer."""
    if node.op_type == "Gemm":
        plain = node.attributes.get_int("transA", 0) == 0 and node.attributes.get_int("transB", 0) == 1
        ones = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if not plain or not ones or len(node.inputs) != 3:
            return None
        source, weight, bias = node.inputs
    elif node.op_type == "Add":
        product, bias = node.inputs
        matmul = product.producer()
        if matmul is None or matmul.op_type != "MatMul" or len(product.shape or ()) != 2:
            return None
        source, transposed = matmul.inputs
        transpose = transposed.producer()
        if transpose is None or transpose.op_type != "Transpose":
            return None
        weight = transpose.inputs[0]
    else:
        return None
    dequantizers = [value.producer() for value in (source, weight)]
    if any(found is None or found.op_type != "DequantizeLinear" for found in dequantizers):
        return None
    return (source, weight, bias) if _array(bias) is not None else None


# Small tools on the graph.


def _array(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _scale(dequantized: ir.Value) -> np.ndarray:
    return _array(dequantized.producer().inputs[1])


def _leading(model: ir.Model, value: ir.Value | None) -> list[Any] | None:
    """Batch and sequence of a value [batch, sequence, width]; None for any other value.

    The batch is the graph's own, the sequence too, or a fixed number (the patches of an image).
    """
    shape = None if value is None else value.shape
    if shape is None or len(shape) != 3:
        return None
    batch, sequence = shape[:2]
    own = model.graph.inputs[0].shape
    return [batch, sequence] if batch == own[0] and (isinstance(sequence, int) or sequence == own[1]) else None


def _flat_shape(value: ir.Value) -> ir.Shape:
    import onnx_ir as ir

    return ir.Shape(["tokens", value.shape[-1]])


def _reshapes_freely(node: ir.Node) -> bool:
    """Whether a Reshape gives the same result for a flat input (a 0 in its shape would copy a dimension)."""
    return node.op_type == "Reshape" and node.attributes.get_int("allowzero", 0) == 1


def _unflatten(model: ir.Model, before: ir.Node, value: ir.Value) -> ir.Value:
    """``value`` (about to be flat) as [batch, sequence, width] again, for nodes from ``before`` on."""
    import numpy as np

    sequence, width = value.shape[1:]
    if isinstance(sequence, int):
        shape = _constant(model, f"unflat_{sequence}_{width}", np.array([-1, sequence, width], np.int64))
    else:
        size = _constant(model, f"width_{width}", np.array([width], np.int64))
        leading = _insert(model, before, "Shape", [model.graph.inputs[0]], f"{value.name}_leading")
        shape = _insert(model, before, "Concat", [leading, size], f"{value.name}_shape", axis=0)
    return _insert(model, before, "Reshape", [value, shape], f"{value.name}_unflat", like=value)


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """The initializer ``name``, made on first use."""
    import onnx_ir as ir

    if name not in model.graph.initializers:
        tensor = ir.tensor(array, name=name)
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor, shape=shape, type=kind))
    return model.graph.initializers[name]


def _insert(
    model: ir.Model,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value],
    name: str,
    like: ir.Value | None = None,
    **attributes: int,
) -> ir.Value:
    """The output ``name`` of a new node placed before another; type and shape are those of ``like``."""
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes=attributes)
    node.outputs[0].name = name
    if like is not None:
        node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _drop_unused(model: ir.Model) -> None:
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)


def _strip(model: ir.Model, inputs: Sequence[Facts]) -> None:
    """Take out what differs between machines or says nothing: stack traces, paths, generated names."""
    from onnx_ir.passes import common

    from edgekd import __version__

    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.producer_name, model.producer_version, model.domain = "edgekd", __version__, ""
    model.graph.name = "main"
    rename: dict[Any, str] = {}
    for value, one in zip(model.graph.inputs, inputs, strict=True):
        rename |= {own: name for own, name in zip(value.shape, one["shape"], strict=True) if isinstance(name, str)}
    for value in _values(model):
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = _renamed(value.shape, rename)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"


def _values(model: ir.Model) -> list[ir.Value]:
    made = [value for node in model.graph for value in node.outputs]
    return [*model.graph.inputs, *model.graph.initializers.values(), *made]


def _renamed(shape: ir.Shape, names: Mapping[Any, str]) -> ir.Shape:
    import onnx_ir as ir

    return ir.Shape([dimension if isinstance(dimension, int) else names.get(dimension) for dimension in shape])


def _serialise(model: ir.Model) -> bytes:
    import onnx_ir as ir

    size_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size_bytes > SIZE_LIMIT_BYTES:
        raise BadInput(
            f"{size_bytes / 1e9:.1f} GB of weights do not fit one ONNX file (2 GB)",
            where="onnx",
            todo="Choose a smaller student.",
        )
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


# Running it.


class _Session:
    """onnxruntime on the CPU: one inference at a time, each example at its own length."""

    def __init__(self, path: Path, threads: int) -> None:
        onnxruntime = require("onnxruntime", extra)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        exact = "1" if int8_products_saturate() else "0"
        options.add_session_config_entry(EXACT_INT8, exact)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
        except Exception as error:  # onnxruntime raises one class per status code, without a common base
            raise Environment(f"onnxruntime does not open it ({error})", where=str(path)) from None
        self._names = [value.name for value in self._session.get_inputs()]
        self.observed: Facts = {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": threads,
            "graph_optimization_level": "all",
            EXACT_INT8: exact,
            "caveats": ["this CPU has no VNNI: slower, exact int8 kernels"] if exact == "1" else [],
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = self._session.run(["logits"], {name: inputs[name] for name in self._names})[0]
        return logits

    def close(self) -> None:
        del self._session


def open_session(artifact: Path, *, threads: int = 1) -> _Session:
    """Open ``artifact/model.onnx`` in onnxruntime's CPU provider; raises Environment when it cannot."""
    return _Session(artifact / f"model{suffix}", threads)


@functools.cache
def int8_products_saturate() -> bool:
    """Whether onnxruntime's default uint8 x int8 product is wrong on this CPU (x86 without VNNI).

    Its kernel there adds pairs of products in 16 bits, which 255 * 127 * 2 overflows. Found out by trying.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    onnxruntime = require("onnxruntime", extra)
    depth, width = 64, 32
    weight = numpy_helper.from_array(np.full((depth, width), 127, np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [4, depth])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [4, width])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    product = session.run(None, {"x": np.full((4, depth), 255, np.uint8)})[0]
    return bool((product != 255 * 127 * depth).any())


# What it runs.

INTEGER_KERNELS = frozenset(
    "DynamicQuantizeMatMul MatMulInteger MatMulIntegerToFloat QAttention QGemm QLinearMatMul".split()
)
FLOAT_KERNELS = frozenset("Conv FusedConv FusedGemm FusedMatMul Gemm MatMul MatMulNBits".split())


def kernels(artifact: Path) -> Facts:
    """Layers with stored weights in the graph as onnxruntime optimised it for this CPU: what the session executes.

    A weight counts as stored if it is computed from stored tensors alone. ``MatMulNBits`` multiplies floats.
    """
    import tempfile

    onnx, onnxruntime = require("onnx", extra), require("onnxruntime", extra)
    session = open_session(artifact)
    options = session._session.get_session_options()
    session.close()
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model{suffix}"
        onnxruntime.InferenceSession(str(artifact / f"model{suffix}"), options, providers=PROVIDERS)
        graph = onnx.load(options.optimized_model_filepath).graph
    stored = {one.name for one in graph.initializer}
    counts = {"integer": 0, "float": 0}
    names: dict[str, int] = {}
    for node in graph.node:
        fed = [name for name in node.input if name]
        if fed and stored.issuperset(fed):
            stored.update(node.output)
        kind = "integer" if node.op_type in INTEGER_KERNELS else "float" if node.op_type in FLOAT_KERNELS else None
        if kind is not None and stored.intersection(fed[1:]):
            counts[kind] += 1
            names[node.op_type] = names.get(node.op_type, 0) + 1
    return {**counts, "how": "optimised graph", "names": names}
