"""Core ML ``.mlpackage`` (ML Program, iOS 17 / macOS 14 and later), and its session.

On a Mac the session is Apple's own runtime. Elsewhere Apple ships none, so the *saved file* is read back and
evaluated by coremltools' own value inference, which is the definition of each MIL operator in numpy: it proves
what the file says, not what Apple's kernels make of it, and ``observed`` says so.

The package has one fixed length, int32 inputs, int8 weights (also of the embedding) and float32 arithmetic:
with float16 the steps before an activation quantizer fall on other int8 values and the logits of a ``w8a8``
model move visibly. Refuses whatever coremltools has no conversion for.
"""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, read_json, write_atomic, write_json
from edgekd.errors import BadInput, StepFailed
from edgekd.targets._contract import Session, load_program, require, specialise

if TYPE_CHECKING:
    import numpy as np
    import torch

suffix = ".mlpackage"
extra = "coreml"
distributions = ("coremltools", "torch")
accepts = frozenset({"fp32", "w8a8"})
slow = sys.platform != "darwin"
benchable = sys.platform == "darwin"

PASSES = [
    "boolean bitwise-and as logical-and",
    "new_ones as a constant",
    "coremltools default pipeline in float32",
]
INPUTS = ("input_ids", "attention_mask")
WEIGHTS = "Data/com.apple.CoreML/weights"
SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"
CAVEATS = [
    "MIL reference evaluation (not Apple's runtime): coremltools' numpy definition of each operator, on the saved file",
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
    return 1e-3 if scheme == "fp32" else 0.25 * logit_range


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.mlpackage`` for batch 1 and exactly ``max_length`` tokens; same Program, same bytes."""
    ct = require("coremltools", extra)
    import numpy as np

    package = out / f"model{suffix}"
    shutil.rmtree(package, ignore_errors=True)
    try:
        model = ct.convert(
            legalise(specialise(load_program(program), max_length)),
            inputs=[ct.TensorType(name, (1, max_length), dtype=np.int32) for name in INPUTS],
            outputs=[ct.TensorType("logits", dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    except NotImplementedError as error:
        raise StepFailed(f"coremltools cannot convert it ({error})", where="coreml export") from None
    model.save(str(package))
    specification = _normalise(package, model.get_spec())
    return {
        "file": package.name,
        "size_bytes": sum(file.stat().st_size for file in package.rglob("*") if file.is_file()),
        "inputs": [{"name": name, "dtype": "int32", "shape": [1, max_length]} for name in INPUTS],
        "outputs": [
            {
                "name": "logits",
                "dtype": "float32",
                "shape": list(specification.description.output[0].type.multiArrayType.shape),
            }
        ],
        "max_length": max_length,
        "fixed_length": True,
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


def _normalise(package: Path, specification: Any) -> Any:
    """Take dates, random identifiers and debug files out of the package: the same input gives the same bytes."""
    import coremltools as ct

    metadata = specification.description.metadata
    metadata.author = metadata.license = ""
    metadata.shortDescription = "Text classifier: token ids and mask to logits."
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


class _Padded:
    """Pads ids and mask to the package's one length; a mask of 0 makes the added tokens invisible."""

    observed: Facts
    length: int

    def padded(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import numpy as np

        tokens = inputs["input_ids"].shape[1]
        if tokens > self.length:
            raise BadInput(f"{tokens} tokens; the artefact takes at most {self.length}", where="coreml")
        return {name: np.pad(inputs[name], ((0, 0), (0, self.length - tokens))).astype(np.int32) for name in INPUTS}


class _AppleSession(_Padded):
    def __init__(self, package: Path) -> None:
        import platform

        import coremltools as ct

        self._model: Any = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)
        self.length = _length(self._model.get_spec())
        self.observed = {
            "runtime": "Core ML",
            "version": f"macOS {platform.mac_ver()[0]}",
            "provider": "CPU only",  # float32 programs do not run on the neural engine, and the GPU rounds otherwise
            "threads": None,
            "max_length": self.length,
            "fixed_length": True,
            "caveats": ["Core ML chooses its own number of threads"],
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        return np.asarray(self._model.predict(self.padded(inputs))["logits"], np.float32)

    def close(self) -> None:
        self._model = None


class _ReferenceSession(_Padded):
    """Value inference of the saved MIL program, operator by operator; constants are unfolded once, here."""

    def __init__(self, package: Path) -> None:
        from importlib.metadata import version

        self.length = _length(load_specification(package))
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
            "max_length": self.length,
            "fixed_length": True,
            "caveats": CAVEATS,
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np

        for name, value in self.padded(inputs).items():
            _set(self._function.inputs[name], value)
        for operation, kernel in self._operations:
            if kernel is not None:
                _store(operation, kernel(operation))
                continue
            operation.type_value_inference(overwrite_output=True)
            if any(output.val is None for output in operation.outputs):
                raise StepFailed(f"coremltools cannot evaluate '{operation.op_type}' outside macOS", where="coreml")
        return np.array(self._function.outputs[0].val, np.float32)

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


_KERNELS: dict[str, Callable[[Any], Any]] = {
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "gather_nd": _gather_nd,
    "dequantize": lambda operation: operation.materialized_val_inference(),  # the library infers it on request only
}


def _store(operation: Any, value: Any) -> None:
    _set(operation.outputs[0], value)


def _set(variable: Any, value: Any) -> None:
    from coremltools.converters.mil.mil.types.type_mapping import numpy_val_to_builtin_val

    variable._sym_val = numpy_val_to_builtin_val(value)[0]


def _length(specification: Any) -> int:
    return int(specification.description.input[0].type.multiArrayType.shape[1])
