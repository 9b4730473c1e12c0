"""ONNX: one file for onnxruntime on servers, phones and in the browser, with dynamic batch and length.

The exporter's own translation of a quantized Program is right but slow: onnxruntime finds no integer kernel
in it and runs float. The passes (``_onnx_passes.py``) respell it, number for number: a layer of static int8
becomes one ``QGemm`` (uint8 activations, int8 weights, the bias as int32, one requantization), a layer quantized by
token an integer product of uint8 and int8 and a few float operators around it, int4 groups ``MatMulNBits``; int8
and half weights of float layers stay so in the file, and onnxruntime widens them once, when it opens it. Nothing
here chooses a scale. Refused: a bias off the grid ``s_in * s_weight``, a quantized layer in a form that the
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
from edgekd.targets._onnx_passes import (
    CONTRIB,
    MARKERS,
    _array,
    _drop_unused,
    flatten_tokens,
    join_tokens,
    shift_to_uint8,
    spell_as_gemm,
    spell_groups,
    spell_halves,
    spell_tokens,
    spell_weights,
)

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

suffix = ".onnx"
extra = "onnx"
distributions = ("onnx-ir", "onnxruntime", "onnxscript", "torch")
accepts = frozenset({"fp32", "fp16", "w8", "w4", "w8a8", "w8a8-float-output", "w8a8-dynamic"})
refuses: dict[str, str] = {}
slow = False
benchable = True
fixed_length = False

PROVIDERS = ["CPUExecutionProvider"]
OPSET = 20  # LayerNormalization (17) and Gelu (20) as single nodes; onnxruntime 1.17 and later
SIZE_LIMIT_BYTES = 2**31 - 1  # protobuf's
EXACT_INT8 = "session.x64quantprecision"  # session option: "1" for exact products where the CPU saturates
VNNI_CAVEAT = f"on x86 CPUs without VNNI set {EXACT_INT8}=1: onnxruntime's default kernels saturate there"


def golden_bound(scheme: str, logit_range: float) -> float:
    """Largest allowed |logit difference| to the Program's golden logits; ``logit_range`` = max - min of those.

    ``scheme`` may be the name of any kind of layer; a mixed Program has the largest bound of its kinds.

    ``fp32``, ``fp16``, ``w8``, ``w4``: the same numbers in float, summed in another order, about 1e-6 relative per
    layer; 1.3e-5 measured (300 texts, 6 layers, a range of 19).

    ``w8a8``, ``w8a8-float-output``: the integer matrix products are exact on both sides, but LayerNorm, softmax and
    GELU between them run in float, where another summation order or erf differs by 1e-6 relative, and
    ``QuantizeLinear`` divides where the Program multiplies by a reciprocal. Now and then that moves a value across a
    rounding tie: one activation differs by one step of 255, and the layers behind spread it. Most answers stay
    identical, and the largest difference is an outlier (300 texts: 3 layers, 98 % identical, 2 % of the range; 6
    layers, 94 % identical, 13 %). So this bound finds gross errors; agreement over the test split is the finer judge.

    ``w8a8-dynamic``: tokens are quantized with the Program's bits where the input has the Program's bits, but no
    output is rounded to a grid, so float noise is never taken back and a tie falls the other way in most texts. Each
    moves one activation by one step of its token, which is finer than a tensor's (300 texts, 6 layers: 47 % identical,
    the median 0.07 %, the largest 0.6 % of the range; quantizing per tensor instead would be 2 % and 9 %).
    """
    if scheme == "w8a8-dynamic":
        return 0.05 * logit_range
    return (0.2 * logit_range) if scheme.startswith("w8a8") else float_bound(logit_range)


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
        "caveats": [VNNI_CAVEAT] if any(node.op_type == "QuantizeLinear" for node in model.graph) else [],
    }


def _translate(program: Path, names: Sequence[str]) -> ir.Model:
    import torch

    exported = load_program(program)
    halves = any(tensor.dtype == torch.float16 for tensor in exported.state_dict.values())
    qd = torch.ops.quantized_decomposed
    found = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=["logits"],
        custom_translation_table={
            torch.ops.aten.scaled_dot_product_attention.default: _attention,
            qd.choose_qparams_per_token_asymmetric.default: _choose_tokens,
            qd.quantize_per_token.default: _quantize_tokens,
            qd.dequantize_per_token.default: _dequantize_tokens,
            qd.dequantize_per_channel_group.default: _dequantize_groups,
            **({torch.ops.aten._to_copy.default: _to_copy} if halves else {}),
        },
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


def _marker(name: str, *inputs: Any, outputs: int = 1) -> Any:
    """A node that stands for one canonical operator until a pass spells it out; the exporter leaves it alone."""
    from onnx import defs
    from onnxscript import values

    types = [f"T{index}" for index in range(len(inputs) + outputs)]
    parameters = [defs.OpSchema.FormalParameter(f"x{index}", kind) for index, kind in enumerate(types)]
    every = sorted(f"tensor({kind})" for kind in ("double", "float", "float16", "int64", "int8"))
    schema = defs.OpSchema(
        name,
        MARKERS,
        1,
        inputs=parameters[: len(inputs)],
        outputs=parameters[len(inputs) :],
        type_constraints=[(kind, every, "") for kind in types],
    )
    return values.Op(values.Opset(MARKERS, 1), name, schema)(*inputs)


def _choose_tokens(x: Any, dtype: int) -> Any:
    return _marker("ChooseTokens", x, outputs=2)


def _quantize_tokens(x: Any, scale: Any, zero: Any, low: int, high: int, dtype: int) -> Any:
    return _marker("QuantizeTokens", x, scale, zero)


def _dequantize_tokens(x: Any, scale: Any, zero: Any, low: int, high: int, dtype: int, made: int) -> Any:
    return _marker("DequantizeTokens", x, scale, zero)


def _dequantize_groups(
    weight: Any, scale: Any, zero: Any, low: int, high: int, dtype: int, group: int, made: int
) -> Any:
    return _marker("DequantizeGroups", weight, scale)


def _to_copy(x: Any, dtype: int = -1, **_: Any) -> Any:
    """A cast; from halves a marker, because the exporter would compute it and store floats."""
    import onnx_ir as ir
    from onnxscript import opset20 as op

    if dtype == -1:
        return op.Identity(x)
    return _marker("Widen", x) if (x.dtype, dtype) == (ir.DataType.FLOAT16, ir.DataType.FLOAT) else op.Cast(x, to=dtype)


def legalise(model: ir.Model) -> list[str]:
    """Respell ``model`` in place for onnxruntime's kernels; returns the names of passes that acted.

    A float model is left alone. Raises BadInput when a layer of integer activations keeps a spelling that onnxruntime
    would run in float.
    """
    acted = [step.__name__ for step in (spell_halves, join_tokens) if step(model)]
    if any(node.op_type in ("QuantizeLinear", "ThroughTokens") for node in model.graph):
        passes = (shift_to_uint8, flatten_tokens, spell_as_gemm, spell_tokens)
        acted += [step.__name__ for step in passes if step(model)]
        _drop_unused(model)
    acted += [step.__name__ for step in (spell_groups, spell_weights) if step(model)]
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and _array(node.inputs[0]) is not None:
            users = {user.op_type for user, _ in node.outputs[0].uses()}
            if users - {"Gemm"}:
                what = f"'{node.inputs[0].name}' is read by {', '.join(sorted(users))}, not by Gemm"
                raise BadInput(f"{what}, and would run in float", where="onnx")
        elif node.domain == MARKERS:
            raise BadInput(f"'{node.outputs[0].name}' ({node.op_type}) has no spelling", where="onnx")
    _set_opsets(model)
    return acted


def _set_opsets(model: ir.Model) -> None:
    model.opset_imports.pop(MARKERS, None)
    if any(node.domain == CONTRIB for node in model.graph):
        model.opset_imports[CONTRIB] = 1


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


def split_answer(content: bytes) -> bytes:
    """A file whose output is ``logits`` [B, S, 2], with ``start_logits`` and ``end_logits`` [B, S] in its place.

    The same numbers under the names by which clients of question answering know them. Same file, same bytes.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(content)
    (whole,) = model.graph.output
    names, shape = ("start_logits", "end_logits"), whole.type.tensor_type.shape.dim
    axes = [dim.dim_param or dim.dim_value for dim in shape[:-1]]
    parts = [f"{name}_column" for name in names]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    model.graph.node.append(helper.make_node("Split", [whole.name], parts, "Split_answer", axis=-1, num_outputs=2))
    for name, part in zip(names, parts, strict=True):
        model.graph.node.append(helper.make_node("Squeeze", [part, "last_axis"], [name], f"Squeeze_{name}"))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes) for name in names)
    made: bytes = model.SerializeToString(deterministic=True)
    return made


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


def profile(artifact: Path, inputs: Mapping[str, np.ndarray], *, runs: int = 30) -> list[Facts]:
    """Milliseconds per inference by operator, from onnxruntime's own profile: ``operator``, ``ms``, ``count``."""
    import json
    import tempfile

    onnxruntime = require("onnxruntime", extra)
    session = open_session(artifact)
    options = session._session.get_session_options()
    names = session._names
    session.close()
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        timed = onnxruntime.InferenceSession(str(artifact / f"model{suffix}"), options, providers=PROVIDERS)
        for _ in range(runs):
            timed.run(["logits"], {name: inputs[name] for name in names})
        events = json.loads(Path(timed.end_profiling()).read_text())
    found: dict[str, Facts] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            row = found.setdefault(event["args"]["op_name"], {"ms": 0.0, "count": 0})
            row["ms"] += event["dur"] / 1000 / runs
            row["count"] += 1
    return [{"operator": name, "ms": row["ms"], "count": row["count"] // runs} for name, row in found.items()]
