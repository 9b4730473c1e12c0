"""Core ML ``.mlpackage`` (ML Program, iOS 17 / macOS 14 and later), and its session.

On a Mac the session is Apple's own runtime. Elsewhere Apple ships none, so the *saved file* is read back and
evaluated by coremltools' own value inference, which is the definition of each MIL operator in numpy: it proves
what the file says, not what Apple's kernels make of it, and ``observed`` says so.

The package has one fixed length, int32 ids and masks (float32 pixels), int8 weights (also of the embedding) and
float32 arithmetic: with float16 the steps before an activation quantizer fall on other int8 values and the logits
of a ``w8a8`` model move visibly. Refuses whatever coremltools has no conversion for.
"""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, read_json, write_atomic, write_json
from edgekd.errors import StepFailed
from edgekd.targets._contract import (
    Session,
    float_bound,
    has_sequence,
    load_program,
    padded,
    read_signature,
    require,
    sizes,
    specialise,
    unpadded,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

suffix = ".mlpackage"
extra = "coreml"
distributions = ("coremltools", "torch")
accepts = frozenset({"fp32", "w8a8"})
refuses: dict[str, str] = {}
slow = sys.platform != "darwin"
benchable = sys.platform == "darwin"

PASSES = [
    "boolean bitwise-and as logical-and",
    "new_ones as a constant",
    "coremltools default pipeline in float32",
]
WEIGHTS = "Data/com.apple.CoreML/weights"
SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"
CAVEATS = [
    "MIL reference evaluation (not Apple's runtime): coremltools' numpy definition of the operators, on the saved file",
    "quantized layers are evaluated as dequantize, float32 linear, quantize, which is what the file says; kernels "
    "that multiply integers round some ties the other way",
]


def golden_bound(scheme: str, logit_range: float) -> float:
    """Largest accepted |logit - golden logit| on a golden example.

    ``fp32``: the same float graph; sums run in another order, which costs a few 1e-6 of the logits' range.
    ``w8a8``: an ML Program spells a quantized layer as dequantize, float32 linear, quantize, where the golden
    logits are computed in integers. Of the half million values that a short text rounds, a handful lie so near
    a tie that the float sum falls on the other side; each such int8 step is amplified by the layers after it.
    Measured on 6 layers: 4 texts in 10 move, by up to 0.05 of the logits' range (100 texts); the Program's own float
    run moves by up to 0.075 (300 texts). The bound is three times that; a wrong scale or a lost layer moves logits
    by the range itself.
    """
    return float_bound(logit_range) if scheme == "fp32" else 0.25 * logit_range


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.mlpackage`` for batch 1 and exactly ``max_length`` tokens; same Program, same bytes."""
    ct = require("coremltools", extra)
    import numpy as np

    inputs, _ = read_signature(program)
    described = [
        {"name": one["name"], "dtype": one["dtype"].replace("int64", "int32"), "shape": sizes(one, max_length)}
        for one in inputs
    ]
    sequence = any(map(has_sequence, inputs))
    package = out / f"model{suffix}"
    shutil.rmtree(package, ignore_errors=True)
    try:
        model = ct.convert(
            legalise(specialise(load_program(program), inputs, max_length)),
            inputs=[ct.TensorType(one["name"], one["shape"], dtype=np.dtype(one["dtype"]).type) for one in described],
            outputs=[ct.TensorType("logits", dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    except NotImplementedError as error:
        raise StepFailed(f"coremltools cannot convert it ({error})", where="coreml export") from None
    model.save(str(package))
    specification = _normalise(package, model.get_spec(), [one["name"] for one in inputs])
    return {
        "file": package.name,
        "size_bytes": sum(file.stat().st_size for file in package.rglob("*") if file.is_file()),
        "inputs": described,
        "outputs": [
            {
                "name": "logits",
                "dtype": "float32",
                "shape": list(specification.description.output[0].type.multiArrayType.shape),
            }
        ],
        "max_length": max_length if sequence else None,
        "fixed_length": sequence,
        "passes": PASSES,
        "compute_precision": "float32",
        "minimum_deployment": "iOS 17, macOS 14",
    }


def legalise(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Spell the two operators that coremltools 9.0 does not know by their equals.

    ``__and__`` of boolean masks is ``logical_and``; ``new_ones`` of a fixed shape is ``ones``. Done on the graph
    because registering conversions in coremltools would change it for everybody in the process.
    """
    import torch

    def ones(like: torch.Tensor, size: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return torch.full(size, 1, dtype=dtype or like.dtype)

    def both(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype != torch.bool or right.dtype != torch.bool:
            raise StepFailed("bitwise-and of integers has no Core ML operator", where="coreml export")
        return torch.logical_and(left, right)

    aten = torch.ops.aten
    return program.run_decompositions(
        {aten.__and__.Tensor: both, aten.bitwise_and.Tensor: both, aten.new_ones.default: ones}
    )


def _normalise(package: Path, specification: Any, names: list[str]) -> Any:
    """Take dates, random identifiers and debug files out of the package: the same input gives the same bytes."""
    import coremltools as ct

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


def load_mil(package: Path) -> Any:
    """The saved package as a ``coremltools`` MIL program, weights included."""
    from coremltools.converters.mil.frontend.milproto.load import load

    specification = load_specification(package)
    return load(
        specification,
        specification_version=specification.specificationVersion,
        file_weights_dir=str(package / WEIGHTS),
    )


def load_specification(package: Path) -> Any:
    """The package's ``Model`` protobuf, read from its file: opening the *package* would write to its manifest."""
    import coremltools as ct

    return ct.utils.load_spec(str(package / SPECIFICATION))


class _Fixed:
    """What both sessions know from the package: the one shape of each input."""

    observed: Facts

    def __init__(self, specification: Any) -> None:
        described = specification.description
        self.shapes = {one.name: list(one.type.multiArrayType.shape) for one in described.input}
        lengths = [shape[1] for shape in self.shapes.values() if len(shape) == 2]
        self.facts: Facts = {"max_length": lengths[0] if lengths else None, "fixed_length": bool(lengths)}

    def padded(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each input in the package's shape and type."""
        import numpy as np

        fixed = padded(inputs, self.shapes, "coreml")
        return {
            name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32) for name, array in fixed.items()
        }


class _AppleSession(_Fixed):
    def __init__(self, package: Path) -> None:
        import platform

        import coremltools as ct

        self._model: Any = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)
        super().__init__(self._model.get_spec())
        self.observed = {
            "runtime": "Core ML",
            "version": f"macOS {platform.mac_ver()[0]}",
            "provider": "CPU only",  # float32 programs do not run on the neural engine, and the GPU rounds otherwise
            "threads": None,
            **self.facts,
            "caveats": ["Core ML chooses its own number of threads"],
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        return unpadded(np.asarray(self._model.predict(self.padded(inputs))["logits"], np.float32), inputs)

    def close(self) -> None:
        self._model = None


class _ReferenceSession(_Fixed):
    """Value inference of the saved MIL program, operator by operator; constants are unfolded once, here."""

    def __init__(self, package: Path) -> None:
        from importlib.metadata import version

        super().__init__(load_specification(package))
        self._function: Any = load_mil(package).functions["main"]
        self._operations = []
        for operation in self._function.operations:
            if operation.op_type.startswith("constexpr_"):
                _store(operation, operation.materialized_val_inference())
            elif operation.op_type != "const":
                self._operations.append((operation, _KERNELS.get(operation.op_type)))
        self.observed = {
            "runtime": "MIL reference evaluation (not Apple's runtime)",
            "version": f"coremltools {version('coremltools')}",
            "provider": "numpy",
            "threads": None,
            **self.facts,
            "caveats": CAVEATS,
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        for name, value in self.padded(inputs).items():
            _set(self._function.inputs[name], value)
        with self._function:  # inference of some operators asks for the block that they stand in
            for operation, kernel in self._operations:
                if kernel is not None:
                    _store(operation, kernel(operation))
                    continue
                operation.type_value_inference(overwrite_output=True)
                if any(output.val is None for output in operation.outputs):
                    raise StepFailed(f"coremltools cannot evaluate '{operation.op_type}' outside macOS", where="coreml")
        return unpadded(np.array(self._function.outputs[0].val, np.float32), inputs)

    def close(self) -> None:
        self._function, self._operations = None, []


def _gelu(operation: Any) -> Any:
    """Exact GELU. The library's own calls ``math.erf`` once per element, which takes half of the time of a text."""
    import numpy as np
    from scipy.special import erf

    if operation.mode.val != "EXACT":
        return operation.value_inference()
    x = operation.x.val.astype(np.float64)
    return (0.5 * x * (1 + erf(x / np.sqrt(2)))).astype(operation.x.val.dtype)


def _layer_norm(operation: Any) -> Any:
    """The library computes in float64 and then logs a warning for every result it stores in float32."""
    return operation.value_inference().astype(operation.x.val.dtype)


def _gather_nd(operation: Any) -> Any:
    """The last axis of the indices runs over the leading axes of x; the library only infers its shape."""
    import numpy as np

    if operation.batch_dims.val != 0:
        raise StepFailed("coremltools cannot evaluate 'gather_nd' with batch axes outside macOS", where="coreml")
    return operation.x.val[tuple(np.moveaxis(operation.indices.val, -1, 0))]


def _reduce(operation: Any) -> Any:
    """The library hands numpy a flag that numpy 2 does not take for one."""
    axes = None if operation.axes is None else tuple(operation.axes.val)
    found = operation.get_operator()(operation.x.val, axis=axes, keepdims=bool(operation.keep_dims.val))
    return found.astype(operation.x.val.dtype)


def _conv(operation: Any) -> Any:
    """Two-dimensional convolution; the library only infers its shape."""
    import numpy as np

    groups, weight = int(operation.groups.val), operation.weight.val
    windows = _windows(operation, weight.shape[2:], operation.dilations.val, 0.0)
    grouped = windows.reshape(len(windows), groups, -1, *windows.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    sums = np.einsum("ngchwij,gocij->ngohw", grouped, kernels, optimize=True)
    sums = sums.reshape(len(windows), -1, *windows.shape[2:4])
    return sums if operation.bias is None else sums + operation.bias.val[:, None, None]


def _max_pool(operation: Any) -> Any:
    """Two-dimensional; the library only infers its shape."""
    import numpy as np

    if operation.ceil_mode.val:
        raise StepFailed("coremltools cannot evaluate 'max_pool' with ceil_mode outside macOS", where="coreml")
    return _windows(operation, operation.kernel_sizes.val, (1, 1), -np.inf).max((-2, -1))


def _windows(operation: Any, kernel: Any, dilations: Any, fill: float) -> Any:
    """What a kernel of this size sees at each place: [N, C, H, W, kernel height, kernel width]."""
    import numpy as np

    if operation.x.rank != 4 or operation.pad_type.val not in ("valid", "custom"):
        what = f"'{operation.op_type}' with {operation.pad_type.val} padding of {operation.x.rank} axes"
        raise StepFailed(f"coremltools cannot evaluate {what} outside macOS", where="coreml")
    top, bottom, left, right = (int(n) if operation.pad_type.val == "custom" else 0 for n in operation.pad.val)
    x = np.pad(operation.x.val, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [(size - 1) * gap + 1 for size, gap in zip(kernel, dilations, strict=True)]
    (down, across), (tall, wide) = operation.strides.val, dilations
    return np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))[:, :, ::down, ::across, ::tall, ::wide]


_KERNELS: dict[str, Callable[[Any], Any]] = {
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "gather_nd": _gather_nd,
    "conv": _conv,
    "max_pool": _max_pool,
    **dict.fromkeys(("reduce_sum", "reduce_mean", "reduce_max", "reduce_l2_norm"), _reduce),
    "dequantize": lambda operation: operation.materialized_val_inference(),  # the library infers it on request only
}


def _store(operation: Any, value: Any) -> None:
    _set(operation.outputs[0], value)


def _set(variable: Any, value: Any) -> None:
    from coremltools.converters.mil.mil.types.type_mapping import numpy_val_to_builtin_val

    variable._sym_val = numpy_val_to_builtin_val(value)[0]


def kernels(artifact: Path) -> Facts:
    """Nothing: Core ML compiles a package on the device, for the compute unit it chooses, and names no kernel."""
    why = "Core ML chooses its kernels on the device" if sys.platform == "darwin" else "there is no Core ML here"
    return {"integer": None, "float": None, "how": None, "names": {}, "why": why}
