"""The saved ML Program, evaluated in numpy: what a package says, where Apple ships no runtime.

coremltools' own value inference defines every MIL operator in numpy; this module runs it over a package read back
from its file, with the few operators that it lacks. Layers of static int8 activations may be evaluated in two ways,
see ``Evaluation``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import StepFailed

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = "Data/com.apple.CoreML/weights"
SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"


def load_specification(package: Path) -> Any:
    """The package's ``Model`` protobuf, read from its file: opening the *package* would write to its manifest."""
    import coremltools as ct

    return ct.utils.load_spec(str(package / SPECIFICATION))


def load_mil(package: Path) -> Any:
    """The saved package as a ``coremltools`` MIL program, weights included."""
    from coremltools.converters.mil.frontend.milproto.load import load

    specification = load_specification(package)
    return load(
        specification,
        specification_version=specification.specificationVersion,
        file_weights_dir=str(package / WEIGHTS),
    )


class Evaluation:
    """A function of a saved MIL program as a callable; constants are unfolded once, here.

    ``dequantize, linear, quantize`` is how a file says "int8 layer". With ``integers`` such a layer is evaluated as
    kernels of integers execute the pattern: an exact sum of integer products, the bias as an integer, one float32
    multiplier, rounding half to even. Without, it is evaluated operator by operator, in float32, as kernels of floats
    do; then float sums that fall near a rounding tie land on either side of it. Everything else is the same in both.
    """

    def __init__(self, package: Path, integers: bool = True, function: str = "main") -> None:
        self._function: Any = load_mil(package).functions[function]
        self._operations: list[tuple[Any, Callable[[Any], Any] | None]] = []
        for operation in self._function.operations:
            if operation.op_type.startswith("constexpr_"):
                _store(operation, operation.materialized_val_inference())
            elif operation.op_type != "const":
                kernel = _integer_layer(operation) if integers and operation.op_type == "linear" else None
                self._operations.append((operation, kernel or _KERNELS.get(operation.op_type)))
        self.integer_layers = sum(isinstance(kernel, _IntegerLayer) for _, kernel in self._operations)

    def reset(self) -> None:
        """Empty all states."""
        import numpy as np
        from coremltools.converters.mil.mil import types

        for variable in self._function.inputs.values():
            if types.is_state(variable.sym_type):
                _set(variable, np.zeros(variable.shape, np.float16))

    def last(self, kind: str) -> Any:
        """The operator of this kind that is nearest to the output."""
        operation = self._function.outputs[0].op
        while operation.op_type != kind:
            operation = operation.x.op
        return operation

    def __call__(self, inputs: Mapping[str, np.ndarray], without: Any = None) -> np.ndarray:
        """The only output, as it is: inputs by name, in the shapes and types of the file.

        ``without`` is an operator that hands its input on instead.
        """
        import numpy as np

        for name, value in inputs.items():
            _set(self._function.inputs[name], value)
        with self._function:  # inference of some operators asks for the block that they stand in
            for operation, kernel in self._operations:
                if operation is without:
                    _store(operation, operation.x.val)
                elif kernel is not None:
                    _store(operation, kernel(operation))
                else:
                    operation.type_value_inference(overwrite_output=True)
                    if any(output.val is None for output in operation.outputs):
                        what = f"coremltools cannot evaluate '{operation.op_type}' outside macOS"
                        raise StepFailed(what, where="coreml")
        return np.array(self._function.outputs[0].val, np.float32)


class _IntegerLayer:
    """``dequantize, linear`` in integers; gives what a ``quantize`` behind it rounds to the right int8, or the floats.

    int8 [..., I] times int8 [O, I]; float64 holds the 32-bit accumulator exactly. Where a quantizer is all that reads
    the layer, its result is the int8 that the kernel gives, handed over as exactly that multiple of the output scale.
    """

    def __init__(self, linear: Any, weight_q: np.ndarray, w_scale: np.ndarray, output: Any) -> None:
        import numpy as np

        self._source = linear.x.op
        self._in_zero = 0 if self._source.zero_point is None else int(self._source.zero_point.val)
        in_scale = np.float32(self._source.scale.val)
        self._weight = weight_q.astype(np.float64).T
        grid_O = float(in_scale) * w_scale.astype(np.float64)
        self._bias = np.zeros(len(w_scale)) if linear.bias is None else np.round(linear.bias.val / grid_O)
        self._multiplier = in_scale * w_scale
        self._out_scale: np.float32 | None = None
        if output is not None:
            self._out_scale = np.float32(output.scale.val)
            self._multiplier = self._multiplier / self._out_scale

    def __call__(self, operation: Any) -> np.ndarray:
        import numpy as np

        x_q = self._source.input.val.astype(np.float64) - self._in_zero
        scaled: np.ndarray = (x_q @ self._weight + self._bias).astype(np.float32) * self._multiplier
        return scaled if self._out_scale is None else np.round(scaled) * self._out_scale


def _integer_layer(linear: Any) -> _IntegerLayer | None:
    """The kernel of a layer whose activations and weights are both int8 in the file; None for any other layer."""
    import numpy as np

    source, weight = linear.x.op, linear.weight.op
    if source is None or source.op_type != "dequantize" or source.scale.rank or weight is None:
        return None
    if weight.op_type == "constexpr_affine_dequantize":
        weight_q, w_scale, zero = weight.quantized_data.val, weight.scale.val, weight.zero_point.val
    elif weight.op_type == "constexpr_blockwise_shift_scale":
        weight_q, w_scale, zero = weight.data.val, weight.scale.val, 0 if weight.offset is None else weight.offset.val
    else:
        return None
    if np.any(zero) or w_scale.size != len(weight_q):  # groups of inputs have no common multiplier
        return None
    readers = linear.outputs[0].child_ops
    quantized = (
        len(readers) == 1
        and readers[0].op_type == "quantize"
        and linear.outputs[0] not in linear.enclosing_block.outputs
    )
    return _IntegerLayer(linear, weight_q, w_scale.ravel(), readers[0] if quantized else None)


def _gelu(operation: Any) -> Any:
    """Exact GELU. The library's own calls ``math.erf`` once per element, which takes half of the time of a text."""
    import numpy as np
    from scipy.special import erf

    if operation.mode.val != "EXACT":
        return operation.value_inference()
    x = operation.x.val.astype(np.float64)
    return (0.5 * x * (1 + erf(x / np.sqrt(2)))).astype(operation.x.val.dtype)


def _silu(operation: Any) -> Any:
    """x * sigmoid(x); the library only infers its shape."""
    from scipy.special import expit

    return operation.x.val * expit(operation.x.val)


def _attention(operation: Any) -> Any:
    """The library scales by a float64, so that float32 inputs come out as float64."""
    return operation.value_inference().astype(operation.query.val.dtype)


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


def _slice_update(operation: Any) -> Any:
    """The tensor with a part of it replaced; strides of one."""
    import numpy as np

    found = operation.x.val.copy()
    begin, end = operation.begin.val, operation.end.val
    masks = [
        np.zeros(found.ndim, bool) if mask is None else mask.val for mask in (operation.begin_mask, operation.end_mask)
    ]
    axes = zip(begin, end, *masks, strict=True)
    found[tuple(slice(None if low else b, None if high else e) for b, e, low, high in axes)] = operation.update.val
    return found


def _update_state(operation: Any) -> Any:
    """The state is the new value from here on."""
    _set(operation.state, operation.value.val)
    return operation.value.val


def _reshape(operation: Any) -> Any:
    """0 keeps a size; the library does not infer it where the file leaves a size open."""
    x, sizes = operation.x.val, operation.shape.val
    return x.reshape([int(size) or x.shape[axis] for axis, size in enumerate(sizes)])


def _expand(operation: Any) -> Any:
    """New axes of one; the library asks for all sizes in the file."""
    import numpy as np

    return np.expand_dims(operation.x.val, tuple(int(axis) for axis in operation.axes.val))


def _shape(operation: Any) -> Any:
    import numpy as np

    return np.array(operation.x.val.shape, np.int32)


_KERNELS: dict[str, Callable[[Any], Any]] = {
    "gelu": _gelu,
    "silu": _silu,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "gather_nd": _gather_nd,
    "shape": _shape,  # of inputs whose shape the file leaves open
    "reshape": _reshape,
    "expand_dims": _expand,
    "slice_update": _slice_update,
    "read_state": lambda operation: operation.input.val,
    "coreml_update_state": _update_state,
    "conv": _conv,
    "max_pool": _max_pool,
    **dict.fromkeys(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_l2_norm"), _reduce),
    "dequantize": lambda operation: operation.materialized_val_inference(),  # the library infers it on request only
}


def _store(operation: Any, value: Any) -> None:
    _set(operation.outputs[0], value)


def _set(variable: Any, value: Any) -> None:
    from coremltools.converters.mil.mil.types.type_mapping import numpy_val_to_builtin_val

    variable._sym_val = numpy_val_to_builtin_val(value)[0]
