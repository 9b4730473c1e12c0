"""Core ML ``.mlpackage`` (ML Program, iOS 17 / macOS 14 and later; iOS 18 / macOS 15 with int4 weights or several
lengths), and its session.

On a Mac the session is Apple's own runtime. Elsewhere Apple ships none, so the *saved file* is read back and
evaluated in numpy (``_mil.py``): it proves what the file says, not what Apple's kernels make of it, and ``observed``
says so.

The package has one fixed length, or a function of the same weights for each of several, int32 ids and masks (float32
pixels), and every weight in the bits that the Program stores (also of the word table). Static int8 layers are spelled
``dequantize, linear, quantize``, the pattern by which Core ML's compiler knows them. A dynamic layer is written out in
plain operators (``linear_of_tokens``), because MIL quantizes activations by constants only. Arithmetic is float32 in
every scheme, ``fp16`` included: halves are what it stores. Arithmetic in halves would move logits by 2.4e-4 of their
range (6 layers, 60 texts), a thousand times as far, and the steps before an activation quantizer to other int8 values.
Refuses whatever coremltools has no conversion for.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, read_json, write_atomic, write_json
from edgekd.errors import StepFailed
from edgekd.targets._contract import (
    Session,
    example,
    float_bound,
    graphs,
    has_sequence,
    load_program,
    padded,
    read_signature,
    require,
    sizes,
    tokens,
    unpadded,
)
from edgekd.targets._mil import SPECIFICATION, Evaluation, load_specification

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.fx import GraphModule

suffix = ".mlpackage"
extra = "coreml"
distributions = ("coremltools", "torch")
accepts = frozenset({"fp32", "fp16", "w8", "w4", "w8a8", "w8a8-float-output", "w8a8-dynamic"})
refuses: dict[str, str] = {}
slow = sys.platform != "darwin"
benchable = sys.platform == "darwin"
fixed_length = True

PASSES = [
    "boolean bitwise-and as logical-and",
    "new_ones as a constant",
    "reciprocal as a division",
    "coremltools default pipeline in float32",
]
INT4 = "int4 weights as constexpr_blockwise_shift_scale"
HALVES = "half weights as constexpr_cast"
DYNAMIC = "dynamic layers as plain operators on integers in float32"
DEFAULT = "main"  # function
REFERENCE = (
    "MIL reference evaluation (not Apple's runtime): coremltools' numpy definition of the operators, on the saved file"
)
INTEGERS = (
    "static int8 layers (dequantize, linear, quantize) are evaluated in integers, as int8 kernels execute that "
    "pattern; a runtime that executes it in float32 rounds some ties the other way"
)


def golden_bound(scheme: str, logit_range: float) -> float:
    """Largest accepted |logit - golden logit| on a golden example.

    ``fp32``, ``fp16``, ``w8``, ``w4``: the same float graph on the same weights; sums run in another order, which costs
    a few 1e-7 of the logits' range (3.1e-7 at most on 6 layers, 60 texts).

    ``w8a8``: an ML Program spells a quantized layer as dequantize, linear, quantize, where the golden logits are
    computed in integers. Evaluated in integers too, only what is float in both (layer norm, attention) differs; run
    in float32, the sums of the layers do as well. Of the half million values that a short text rounds, a handful lie
    so near a tie that they fall on the other side, and each such int8 step is amplified by the layers after it.
    Measured on 6 layers, 300 texts: in integers 9 texts in 100 move, by up to 0.028 of the logits' range; in float32
    37, by up to 0.051; the Program's own float run moves by up to 0.075. The bound is three times that, and serves
    Apple's kernels whichever way they compute; a wrong scale or a lost layer moves logits by the range itself.
    With dynamic contracting layers: 10 texts in 100, by up to 0.016; ``w8a8-float-output``: 22, by up to 0.014 (60).

    ``w8a8-dynamic``: the sums are exact, but every layer rounds its result once more than the Program, so that
    every second text has a value that falls on the other side of a tie; a token's step is small, and the largest
    movement was 0.0043 of the range (6 layers, 60 texts). The bound leaves room for deeper models.
    """
    if "a8" not in scheme:
        return float_bound(logit_range)
    return (0.1 if scheme == "w8a8-dynamic" else 0.25) * logit_range


def export(program: Path, out: Path, *, max_length: int, shorter: Sequence[int] = ()) -> Facts:
    """Write ``out/model.mlpackage`` for batch 1 and exactly ``max_length`` tokens; same Program, same bytes.

    Each of the ``shorter`` lengths is a function ``tokens_<length>`` beside the default one, ``main``.
    """
    ct = require("coremltools", extra)
    _register()
    inputs, _ = read_signature(program)
    module = load_program(program).module()
    passes = respell(module)
    newer = INT4 in passes or bool(shorter)  # needs the operators, or the functions, of iOS 18
    described = _described(inputs, max_length)
    sequence = any(map(has_sequence, inputs))
    package = out / f"model{suffix}"
    shutil.rmtree(package, ignore_errors=True)
    if shorter:
        functions = ct.utils.MultiFunctionDescriptor()
        functions.default_function_name = DEFAULT
        with tempfile.TemporaryDirectory() as folder:
            for name, length in graphs(DEFAULT, max_length, shorter).items():
                part = str(Path(folder) / f"{name}{suffix}")
                _converted(module, inputs, length, newer).save(part)
                functions.add_function(part, "main", name)
            ct.utils.save_multifunction(functions, str(package))
    else:
        _converted(module, inputs, max_length, newer).save(str(package))
    specification = normalise(package, [one["name"] for one in inputs])
    (output,) = _functions(specification)[DEFAULT].output
    return {
        "file": package.name,
        "size_bytes": sum(file.stat().st_size for file in package.rglob("*") if file.is_file()),
        "inputs": described,
        "outputs": [{"name": "logits", "dtype": "float32", "shape": list(output.type.multiArrayType.shape)}],
        "max_length": max_length if sequence else None,
        "fixed_length": sequence,
        "lengths": sorted((*shorter, max_length)) if sequence else [],
        "passes": [*passes, *PASSES],
        "compute_precision": "float32",
        "minimum_deployment": "iOS 18, macOS 15" if newer else "iOS 17, macOS 14",
    }


def _described(inputs: Sequence[Facts], length: int) -> list[Facts]:
    """The inputs as a function of this length takes them."""
    dtypes = {"int64": "int32"}
    return [
        {"name": one["name"], "dtype": dtypes.get(one["dtype"], one["dtype"]), "shape": sizes(one, length)}
        for one in inputs
    ]


def _converted(module: GraphModule, inputs: Sequence[Facts], length: int, newer: bool) -> Any:
    """The model of one length; ``newer``: with the operators of iOS 18."""
    import coremltools as ct
    import numpy as np
    import torch

    described = _described(inputs, length)
    try:
        return ct.convert(
            legalise(torch.export.export(module, example(inputs, length))),
            inputs=[ct.TensorType(one["name"], one["shape"], dtype=np.dtype(one["dtype"]).type) for one in described],
            outputs=[ct.TensorType("logits", dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18 if newer else ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    except NotImplementedError as error:
        raise StepFailed(f"coremltools cannot convert it ({error})", where="coreml export") from None


def _functions(specification: Any) -> dict[str, Any]:
    """Descriptions of a package's functions by name: one ``main`` where it does not speak of functions."""
    described = specification.description
    return {one.name: one for one in described.functions} or {DEFAULT: described}


def respell(module: GraphModule) -> list[str]:
    """Spell the layers that coremltools cannot convert, in a Program's graph and in place; says what it did.

    A weight keeps the bits that it has in the Program: groups of int4 and halves become the constant expressions of
    MIL that unpack them (``_register``), and only the arithmetic of a dynamic layer is written out.
    """
    import torch
    import torch.fx

    qd, aten = torch.ops.quantized_decomposed, torch.ops.aten
    done = []
    for node in list(module.graph.nodes):
        if node.target is qd.dequantize_per_channel_group.default:
            weight_q, w_scale, *_ = node.args
            _replace(module, node, torch.ops.edgekd_coreml.int4_groups, (weight_q, w_scale))
            done.append(INT4)
        elif node.target is aten.linear.default:
            weight = node.args[1]
            if weight.target is aten.to.dtype and _held(module, weight.args[0]).dtype is torch.float16:
                _replace(module, weight, torch.ops.edgekd_coreml.halves, (weight.args[0],))
                done.append(HALVES)
            if node.args[0].target is qd.dequantize_per_token.default:
                _dynamic(module, node)
                done.append(DYNAMIC)
    module.graph.eliminate_dead_code()
    module.recompile()
    return sorted(set(done))


def _dynamic(module: GraphModule, node: torch.fx.Node) -> None:
    """Replace a dynamic layer by ``linear_of_tokens``; its weight becomes the stored integers at scale 1."""
    import torch

    integers, *_ = node.args[0].args
    x = integers.args[0]
    weight_q, w_scale, w_zero, *rest = node.args[1].args
    ones = f"ones_{len(_held(module, w_scale))}"
    if not hasattr(module, ones):
        module.register_buffer(ones, torch.ones_like(_held(module, w_scale)))
    with module.graph.inserting_before(node):
        one = module.graph.get_attr(ones)
        weight = module.graph.call_function(node.args[1].target, (weight_q, one, w_zero, *rest))
    bias = node.args[2] if len(node.args) > 2 else None
    _replace(module, node, linear_of_tokens, (x, weight, w_scale, bias))


def linear_of_tokens(
    x: torch.Tensor, weight: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """A dynamic layer in operators that MIL has: x [..., I], integers [O, I] as floats, [O], [O] -> [..., O], float32.

    The arithmetic of ``integer.int8_linear_tokens``, step by step, with the integers in float32. A sum of products of
    integers is exact, in any order, while it stays below 2**24: up to 518 inputs whatever they are, and in practice
    far beyond (1536 inputs, 6 layers, 30 texts: the sums of magnitudes reach 0.1 * 2**24). A larger sum is rounded to
    24 bits on the way, relatively 6e-8 each time; the Program rounds it once, at its end. The last product and sum are
    rounded each, where the Program rounds them as one: 6e-8 of the larger.
    """
    import torch
    import torch.nn.functional as F

    low, high = x.amin(-1, keepdim=True).clamp_max(0.0), x.amax(-1, keepdim=True).clamp_min(0.0)
    full = torch.full_like(low, 255.0)
    steps = full / torch.where(low == high, full, high - low)
    at_low, at_high = low * steps, high * steps
    zero = torch.where((at_low - 128.0) + (at_high + 127.0) > 0, -128.0 - at_low, 127.0 - at_high)
    zero = zero.clamp(-128.0, 127.0).round()
    integers = ((x * steps).round() + zero).clamp(-128.0, 127.0) - zero
    product = F.linear(integers, weight) * (torch.full_like(steps, 1.0) / steps) * w_scale
    return product if bias is None else product + bias


def _replace(module: GraphModule, node: torch.fx.Node, function: Any, arguments: tuple[Any, ...]) -> None:
    with module.graph.inserting_before(node):
        made = module.graph.call_function(function, arguments)
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)


def _held(module: GraphModule, node: torch.fx.Node) -> torch.Tensor:
    """The parameter or buffer that a node stands for."""
    from operator import attrgetter

    tensor: torch.Tensor = attrgetter(node.target)(module)
    return tensor


@cache
def _register() -> None:
    """Two operators of our own, and how coremltools writes them: constants that MIL unpacks.

    Their names are nobody else's, so no conversion of coremltools changes for others in the process.
    """
    import torch
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
    from coremltools.converters.mil.mil import types

    @torch.library.custom_op(
        "edgekd_coreml::int4_groups", mutates_args=(), schema="(Tensor weight_q, Tensor w_scale) -> Tensor"
    )
    def int4_groups(weight_q: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
        groups = w_scale.shape[1]
        return (weight_q.float().unflatten(1, (groups, -1)) * w_scale[:, :, None]).flatten(1)

    @torch.library.custom_op("edgekd_coreml::halves", mutates_args=(), schema="(Tensor weight_q) -> Tensor")
    def halves(weight_q: torch.Tensor) -> torch.Tensor:
        return weight_q.float()

    @int4_groups.register_fake
    def _(weight_q: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
        return torch.empty(weight_q.shape, dtype=torch.float32)

    @halves.register_fake
    def _(weight_q: torch.Tensor) -> torch.Tensor:
        return torch.empty(weight_q.shape, dtype=torch.float32)

    @register_torch_op(torch_alias=["edgekd_coreml::int4_groups"])
    def edgekd_coreml_int4_groups(context: Any, node: Any) -> None:
        weight_q, w_scale = (context[name].val for name in node.inputs)
        data = weight_q.astype(types.nptype_from_builtin(types.int4))
        context.add(Builder.constexpr_blockwise_shift_scale(data=data, scale=w_scale, name=node.name))

    @register_torch_op(torch_alias=["edgekd_coreml::halves"])
    def edgekd_coreml_halves(context: Any, node: Any) -> None:
        weight_q = context[node.inputs[0]].val
        context.add(Builder.constexpr_cast(source_val=weight_q, output_dtype="fp32", name=node.name))


def legalise(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Spell the operators that coremltools 9.0 does not know, or not rightly, by their equals.

    ``__and__`` of boolean masks is ``logical_and``; ``new_ones`` of a fixed shape is ``ones``; a reciprocal is a
    division, because coremltools would add 1e-4 to the divisor. Done on the graph because registering conversions in
    coremltools would change it for everybody in the process.
    """
    import torch

    def ones(like: torch.Tensor, size: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return torch.full(size, 1, dtype=dtype or like.dtype)

    def both(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype != torch.bool or right.dtype != torch.bool:
            raise StepFailed("bitwise-and of integers has no Core ML operator", where="coreml export")
        return torch.logical_and(left, right)

    def reciprocal(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 1.0) / x

    aten = torch.ops.aten
    return program.run_decompositions(
        {
            aten.__and__.Tensor: both,
            aten.bitwise_and.Tensor: both,
            aten.new_ones.default: ones,
            aten.reciprocal.default: reciprocal,
        }
    )


def normalise(package: Path, names: list[str]) -> Any:
    """Take dates, random identifiers and debug files out of the package: the same input gives the same bytes."""
    import coremltools as ct

    specification = load_specification(package)
    metadata = specification.description.metadata
    metadata.author = metadata.license = ""
    metadata.shortDescription = f"{', '.join(names)} to logits."
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    write_atomic(package / SPECIFICATION, specification.SerializeToString(deterministic=True))
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    manifest = read_json(package / "Manifest.json")
    fresh = {
        old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])) for old, item in manifest["itemInfoEntries"].items()
    }
    entries = {fresh[old]: item for old, item in manifest["itemInfoEntries"].items()}
    root = fresh[manifest["rootModelIdentifier"]]
    manifest |= {"itemInfoEntries": dict(sorted(entries.items())), "rootModelIdentifier": root}
    write_json(package / "Manifest.json", manifest)
    ct.utils.load_spec(str(package))  # rewrites the manifest in its own layout now, so that opening changes nothing
    return specification


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open ``artifact/model.mlpackage``: Apple's runtime on a Mac, the MIL reference evaluation elsewhere.

    Neither takes a thread count, so ``threads`` is not used and ``observed`` says ``None``.
    """
    require("coremltools", extra)
    package = artifact / f"model{suffix}"
    try:
        return _AppleSession(package) if sys.platform == "darwin" else _ReferenceSession(package)
    except Exception as error:  # coremltools, protobuf and Apple's runtime raise anything for a broken package
        raise StepFailed(f"Core ML package cannot be opened ({error})", where=str(package)) from None


class _Fixed:
    """What both sessions know from the package: its functions, and the one shape that each has for an input.

    A function is opened when it is run first; a text runs in the shortest that holds it.
    """

    observed: Facts

    def __init__(self, package: Path, specification: Any) -> None:
        self.package = package
        self._shapes = {
            name: {one.name: list(one.type.multiArrayType.shape) for one in described.input}
            for name, described in _functions(specification).items()
        }
        self._lengths = {
            name: max((shape[1] for shape in shapes.values() if len(shape) == 2), default=0)
            for name, shapes in self._shapes.items()
        }
        self._opened: dict[str, Any] = {}
        lengths = sorted(length for length in self._lengths.values() if length)
        self.facts: Facts = {
            "max_length": max(lengths, default=None),
            "fixed_length": bool(lengths),
            "lengths": lengths,
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        size = tokens(inputs)
        fitting = [name for name, length in self._lengths.items() if length >= size]
        name = min(fitting, key=self._lengths.__getitem__, default=DEFAULT)
        fixed = {
            key: array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
            for key, array in padded(inputs, self._shapes[name], "coreml").items()
        }
        return unpadded(self.logits(self.opened(name), fixed), inputs)

    def opened(self, name: str) -> Any:
        """The function, opened once."""
        if name not in self._opened:
            self._opened[name] = self.open(name)
        return self._opened[name]

    def open(self, name: str) -> Any:
        raise NotImplementedError

    def logits(self, function: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        self._opened.clear()


class _AppleSession(_Fixed):
    def __init__(self, package: Path) -> None:
        import platform

        super().__init__(package, load_specification(package))
        self.opened(DEFAULT)
        self.observed = {
            "runtime": "Core ML",
            "version": f"macOS {platform.mac_ver()[0]}",
            "provider": "CPU only",  # float32 programs do not run on the neural engine, and the GPU rounds otherwise
            "threads": None,
            **self.facts,
            "caveats": ["Core ML chooses its own number of threads"],
        }

    def open(self, name: str) -> Any:
        import coremltools as ct

        several = {"function_name": name} if len(self._lengths) > 1 else {}
        return ct.models.MLModel(str(self.package), compute_units=ct.ComputeUnit.CPU_ONLY, **several)

    def logits(self, function: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        return np.asarray(function.predict(dict(inputs))["logits"], np.float32)


class _ReferenceSession(_Fixed):
    """The MIL reference evaluation of the saved file."""

    def __init__(self, package: Path, integers: bool = True) -> None:
        from importlib.metadata import version

        super().__init__(package, load_specification(package))
        self._integers = integers
        layers = self.opened(DEFAULT).integer_layers
        self.observed = {
            "runtime": "MIL reference evaluation (not Apple's runtime)",
            "version": f"coremltools {version('coremltools')}",
            "provider": "numpy",
            "threads": None,
            "integer_layers": layers,
            **self.facts,
            "caveats": [REFERENCE, INTEGERS] if layers else [REFERENCE],
        }

    def open(self, name: str) -> Any:
        return Evaluation(self.package, self._integers, name)

    def logits(self, function: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = function(inputs)
        return found


def kernels(artifact: Path) -> Facts:
    """Nothing: Core ML compiles a package on the device, for the compute unit it chooses, and names no kernel."""
    why = "Core ML chooses its kernels on the device" if sys.platform == "darwin" else "there is no Core ML here"
    return {"integer": None, "float": None, "how": None, "names": {}, "why": why}
