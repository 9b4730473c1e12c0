"""OpenVINO IR for x86 edge boxes: ``model.xml`` beside ``model.bin``, with dynamic batch and length.

OpenVINO's PyTorch frontend reads the Program once its stored weights are spelled in plain operators: integers (int8,
int4 or halves, as in the Program) cast and multiplied by their scale. Static activations become ``FakeQuantize``, and
the CPU plugin's low-precision transformations run such a layer in integers, uint8 by int8 into int32, with the bias
and the next rounding behind. Nothing here chooses a scale, and OpenVINO may choose none: its own dynamic quantization
of activations is off, and arithmetic that is not in integers is float32 (where a CPU has AMX, its default is bfloat16).

An NPU wants one shape: the app calls ``model.reshape`` before it compiles. No number here was measured on one.
OpenVINO's Python package reports its use to its maker; nothing is reported from here.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts
from edgekd.errors import BadInput, Environment
from edgekd.targets._contract import float_bound, has_sequence, load_program, read_signature, require

if TYPE_CHECKING:
    import numpy as np
    import openvino
    import torch

suffix = ".xml"
extra = "openvino"
distributions = ("openvino", "torch")
accepts = frozenset({"fp32", "fp16", "w8", "w4", "w8a8", "w8a8-float-output"})
refuses: dict[str, str] = {
    "w8a8-dynamic": "OpenVINO's frontend does not read a scale of each token, and its own dynamic quantization "
    "chooses scales by groups of inputs",
}
slow = False
benchable = True
fixed_length = False

WEIGHTS = "model.bin"
STATIC = frozenset({"w8a8", "w8a8-float-output"})
PRECISION, DYNAMIC = "INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"
INTEGERS = "LP_TRANSFORMS_MODE"  # "NO": quantized layers in float
PLAIN = {PRECISION: "f32", DYNAMIC: 0}
INT4 = (-8, 7)


def golden_bound(scheme: str, logit_range: float) -> float:
    """Largest allowed |logit difference| to the Program's golden logits; ``logit_range`` = max - min of those.

    Without static activations: the same float operations in another order of summation; 1e-5 measured.

    With them: the products are exact integers on both sides, but ``FakeQuantize`` divides by a range where the Program
    multiplies by a reciprocal, and adds the zero point before it rounds: a few activations in a million fall to the
    other side of a tie, one step of 255, and the layers behind spread it. Measured on 6 layers: with weights of seven
    bits, so that no kernel saturates, and integer kernels, all of 120 texts agree with the Program, 27 % are identical,
    the largest difference is 3.6 % of the range (in float: 29 %, 3.6 %); with the ordinary Program in float, as on a
    CPU without VNNI, 99.3 % of 150 texts agree, 19 % are identical, 5.9 %. So this bound finds gross errors; agreement
    over the test split is the finer judge.
    """
    return 0.2 * logit_range if scheme in STATIC else float_bound(logit_range)


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.xml`` and ``out/model.bin``: the Program's inputs, batch and sequence dynamic -> ``logits``.

    ``max_length`` (tokens) is recorded; the file itself takes any length up to what the Program was made for.
    Facts beyond the contract's: ``beside``, the files without which ``file`` is nothing; ``size_bytes`` counts them.
    Same Program, same bytes. Raises BadInput where an activation quantizer of the Program would get lost.
    """
    vendor = _openvino()
    inputs, outputs = read_signature(program)
    exported, passes = legalise(load_program(program))
    try:
        model = vendor.convert_model(exported)
    except Exception as error:  # the frontend's own classes are private
        raise BadInput(f"OpenVINO cannot convert it ({' '.join(str(error).split())[:300]})", where="openvino") from None
    passes += [step.__name__ for step in (pack_int4,) if step(model)]
    quantized = _quantizers(model)
    if quantized != _count(exported, "quantize_per_tensor", distinct=True):
        raise BadInput("an activation quantizer of the Program got lost in conversion", where="openvino")
    path = out / f"model{suffix}"
    vendor.save_model(_stripped(model, inputs), str(path), compress_to_fp16=False)
    settings = [f"{PRECISION}=f32", f"{DYNAMIC}=0"]
    caveats = [f"compile it with {' and '.join(settings)}: OpenVINO's defaults may compute in other numbers"]
    if quantized:
        caveats.append(f"on x86 CPUs without VNNI also set {INTEGERS}=NO: OpenVINO's int8 kernels saturate there")
    return {
        "file": path.name,
        "beside": [WEIGHTS],
        "size_bytes": path.stat().st_size + (out / WEIGHTS).stat().st_size,
        "inputs": inputs,
        "outputs": outputs,
        "max_length": max_length if any(map(has_sequence, inputs)) else None,
        "fixed_length": False,
        "passes": passes,
        "caveats": caveats,
    }


def _openvino() -> Any:
    """The package, silenced: without its reporting package it takes a stub of its own."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it fails from here on
    return require("openvino", extra)


# Passes: each changes the spelling, never a number.


def legalise(exported: torch.export.ExportedProgram) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The Program as OpenVINO's frontend reads it, its weights in plain operators; and the passes that acted."""
    import torch

    ops = torch.ops.quantized_decomposed
    spellings = {
        "dequantize_per_channel": (ops.dequantize_per_channel.default, spell_channels),
        "dequantize_per_channel_group": (ops.dequantize_per_channel_group.default, spell_groups),
    }
    passes = [step.__name__ for step in (drop_empty_parts,) if step(exported)]
    found = {op: spelling for name, (op, spelling) in spellings.items() if _count(exported, name)}
    if found:
        exported = exported.run_decompositions(found)
    return exported, passes + [one.__name__ for one in found.values()]


def drop_empty_parts(exported: torch.export.ExportedProgram) -> int:
    """``cat([e, x])`` with e of shape [0] (a decoder's empty cache) becomes ``x``; OpenVINO wants parts of one rank.

    In place; returns the number of concatenations.
    """
    import torch

    changed = 0
    for node in list(exported.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)):
        parts = [part for part in node.args[0] if tuple(part.meta["val"].shape) != (0,)]
        if len(parts) != 1:
            continue
        node.replace_all_uses_with(parts[0])
        exported.graph.erase_node(node)
        changed += 1
    exported.graph.eliminate_dead_code()
    exported.graph_module.recompile()
    return changed


def spell_channels(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    axis: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """int8 [O, I] times scales [O]: float32 [O, I]. Zero points are 0 in every canonical layer."""
    import torch

    return weight.to(torch.float32) * scales[:, None]


def spell_groups(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    low: int,
    high: int,
    dtype: torch.dtype,
    group: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """int8 [O, I] times scales [O, I / group] of neighbours: float32 [O, I]."""
    import torch

    groups = weight.reshape(weight.shape[0], -1, group).to(torch.float32)
    return (groups * scales[:, :, None]).reshape(weight.shape)


def pack_int4(model: openvino.Model) -> int:
    """Weights of groups, int8 constants [O, I / group, group] within -8 and 7, become int4 constants.

    Exact: the same integers. Returns the number of weights.
    """
    import numpy as np

    vendor = _openvino()
    changed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != vendor.Type.i8 or len(node.shape) != 3:
            continue
        values = node.data
        if values.min() < INT4[0] or values.max() > INT4[1] or values.size % 2:
            continue
        halves = (values.reshape(-1, 2) & 15).astype(np.uint8)  # the first number in the low half
        packed = vendor.Tensor(vendor.Type.i4, node.shape)
        packed.data[:] = (halves[:, 0] | halves[:, 1] << 4).view(np.int8)
        constant = vendor.op.Constant(packed)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(constant.output(0))
        changed += 1
    return changed


# Small tools.


def _count(exported: torch.export.ExportedProgram, operator: str, *, distinct: bool = False) -> int:
    """How often the Program uses it; ``distinct``: with other arguments, because equal ones become one node."""
    name = f"quantized_decomposed.{operator}.default"
    found = [node.args for node in exported.graph.nodes if str(node.target) == name]
    return len(set(found) if distinct else found)


def _quantizers(model: openvino.Model) -> int:
    """How many activation quantizers it has."""
    return sum(node.get_type_name() == "FakeQuantize" for node in model.get_ordered_ops())


def _stripped(model: openvino.Model, inputs: Sequence[Facts]) -> openvino.Model:
    """The same graph with the Program's names and without what says where and how it was converted."""
    vendor = _openvino()
    for parameter, one in zip(model.get_parameters(), inputs, strict=True):
        parameter.output(0).set_names({one["name"]})
        parameter.set_friendly_name(one["name"])
    (result,) = model.get_results()
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() == "Parameter":
            continue
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
        for value in node.outputs():
            value.set_names(set())
    result.input_value(0).set_names({"logits"})
    return vendor.Model(model.get_results(), model.get_parameters(), "edgekd")


# Running it.


def _compiled(model: openvino.Model, threads: int, integers: bool) -> openvino.CompiledModel:
    """The model for the CPU plugin: one inference at a time; nothing is cached on disk (OpenVINO's default)."""
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False, **PLAIN}
    if not integers:
        settings[INTEGERS] = "NO"
    return _openvino().Core().compile_model(model, "CPU", settings)


class _Session:
    """OpenVINO's CPU plugin: one inference at a time, each example at its own length."""

    def __init__(self, path: Path, threads: int) -> None:
        vendor = _openvino()
        try:
            core = vendor.Core()
            model = core.read_model(str(path))
            quantized = _quantizers(model) > 0
            integers = quantized and not int8_products_saturate()
            compiled = _compiled(model, threads, integers or not quantized)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
            raise Environment(f"OpenVINO does not open it ({said})", where=str(path)) from None
        self._shapes = {one.get_any_name(): one.get_partial_shape() for one in compiled.inputs}
        self._request = compiled.create_infer_request()
        caveats = []
        if quantized and not integers:
            caveats.append("this CPU has no VNNI: OpenVINO's int8 kernels saturate, so quantized layers run in float")
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            caveats.append("float32 as asked: OpenVINO's default on this CPU is bfloat16")
        self.observed: Facts = {
            "runtime": "OpenVINO",
            "version": vendor.__version__.partition("-")[0],
            "provider": "CPU",
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "inference_precision": compiled.get_property(PRECISION).get_type_name(),
            "integer_layers": integers,
            "caveats": caveats,
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        for name, shape in self._shapes.items():
            found = inputs[name].shape
            if len(found) != len(shape) or any(s.is_static and s != n for s, n in zip(shape, found, strict=True)):
                raise BadInput(f"{name} of shape {found}; the artefact takes {shape}", where="openvino")
        logits: np.ndarray = self._request.infer({name: inputs[name] for name in self._shapes})["logits"].copy()
        return logits

    def close(self) -> None:
        del self._request


def open_session(artifact: Path, *, threads: int = 1) -> _Session:
    """Open ``artifact/model.xml`` in OpenVINO's CPU plugin; raises Environment when it cannot.

    Where the CPU's int8 kernels saturate, quantized layers run in float, as the file spells them.
    """
    return _Session(artifact / f"model{suffix}", threads)


# What it runs.

LAYERS = frozenset(("Convolution", "FullyConnected", "MatMul"))


def kernels(artifact: Path) -> Facts:
    """Layers with stored weights in the graph as OpenVINO's CPU plugin runs it; integer where both operands are int8.

    Cannot be told on a CPU whose int8 kernels saturate, because none is used there.
    """
    model = _openvino().Core().read_model(str(artifact / f"model{suffix}"))
    if _quantizers(model) and int8_products_saturate():
        why = "OpenVINO's int8 kernels saturate on this CPU, so none is used here"
        return {"integer": None, "float": None, "how": None, "names": {}, "why": why}
    counts, names = {"integer": 0, "float": 0}, Counter[str]()
    for node in _compiled(model, 1, integers=True).get_runtime_model().get_ordered_ops():
        layer = node.get_rt_info()["layerType"].value
        if layer not in LAYERS or node.input_value(1).get_node().get_rt_info()["layerType"].value != "Const":
            continue
        integer = all(node.get_input_element_type(place).get_size() == 1 for place in (0, 1))
        counts["integer" if integer else "float"] += 1
        names[f"{layer} {node.get_rt_info()['primitiveType'].value}"] += 1
    return {**counts, "how": "runtime graph", "names": dict(sorted(names.items()))}


@functools.cache
def int8_products_saturate() -> bool:
    """Whether OpenVINO's uint8 x int8 product is wrong on this CPU (x86 without VNNI).

    Its kernel there adds pairs of products in 16 bits, which 255 * 127 * 2 overflows. Found out by trying.
    """
    import numpy as np

    vendor = _openvino()
    op, depth, width = vendor.opset13, 64, 32

    def constant(value: Any) -> Any:
        return op.constant(np.asarray(value, np.float32))

    x = op.parameter([-1, depth], vendor.Type.f32, name="x")
    low, high = constant(0.0), constant(127.5)  # steps of a half: a scale of 1 would be left out, and the integers too
    weight = op.multiply(op.convert(op.constant(np.full((width, depth), 127, np.int8)), "f32"), constant(0.5))
    product = op.matmul(op.fake_quantize(x, low, high, low, high, 256), weight, False, True)
    compiled = _compiled(vendor.Model([product], [x], "saturation"), 1, True)
    found = compiled(np.full((4, depth), 127.5, np.float32))[0]
    return bool((found != 127.5 * 63.5 * depth).any())
