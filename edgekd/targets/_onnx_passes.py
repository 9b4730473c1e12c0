"""The ONNX target's passes. Each changes the spelling of a graph, never a number, and can run alone (the tests do so).

What the exporter cannot spell arrives as nodes of the domain ``MARKERS``, one for each canonical operator
(docs/architecture.md), and leaves as operators that onnxruntime has kernels for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

MARKERS = "edgekd"  # domain of nodes that no runtime knows; none is left in a file
CONTRIB = "com.microsoft"  # domain of onnxruntime's own operators
SMALLEST_RANGE = 7.6e-37  # 255 divided by it is still a float32
# Ops that treat every token alike, so that [batch, sequence, width] may be [tokens, width].
TOKENWISE = frozenset(
    "Add DequantizeLinear Gelu LayerNormalization MatMul Mul QuantizeLinear Relu Tanh ThroughTokens".split()
)


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
        _replace(result, gemm)
        changed += 1
    return changed


def _quantized_linear(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """(dequantized input, dequantized weight [out, in], float bias) when ``node`` ends a quantized linear layer."""
    if node.op_type == "Gemm":
        if not _plain(node) or len(node.inputs) != 3:
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


def join_tokens(model: ir.Model) -> int:
    """``DequantizeTokens(QuantizeTokens(x, *ChooseTokens(x)))`` becomes one ``ThroughTokens(x)`` for all that read x.

    So query, key and value quantize their input once. Returns the number of tensors that are quantized by token;
    BadInput for markers in any other order.
    """
    import onnx_ir as ir

    joined: dict[ir.Value, ir.Value] = {}
    for node in [node for node in model.graph if node.op_type == "DequantizeTokens"]:
        quantize, choose = (value.producer() for value in node.inputs[:2])
        kinds = [_made_by(value) for value in node.inputs[:2]]
        if (
            kinds != ["QuantizeTokens", "ChooseTokens"]
            or [*quantize.inputs] != [*choose.inputs, *choose.outputs]
            or [*node.inputs[1:]] != [*choose.outputs]
        ):
            raise BadInput(f"'{node.outputs[0].name}' is not dequantized as it was quantized", where="onnx")
        x = choose.inputs[0]
        if x not in joined:
            name = f"{x.name}_through_tokens"
            joined[x] = _insert(model, choose, "ThroughTokens", [x], name, like=x, domain=MARKERS)
        ir.convenience.replace_all_uses_with(node.outputs[0], joined[x])
    _drop_unused(model)
    return len(joined)


def spell_tokens(model: ir.Model) -> int:
    """``MatMul(ThroughTokens(x), Transpose(DQ(W)))`` becomes a product of integers, uint8 [tokens, I] by int8 [I, O].

    With u the token's integers from 0 to 255 and z its zero point from -128, the kernel's own sum is that of
    (u - 128) w, an int32 given as float. Taken off it is z times the column sum of w: exact while sums stay below
    2**24 (255 sum |w| bounds them: 0.8 of that for the 1,536 inputs of MiniLM), else with a rounding as XNNPACK's sum
    then has too. Then ``* s_token * s_weight + bias`` in the reference's order, with one rounding more than a fused
    multiply-add has. (Scaling inside the kernel and correcting after it is 3 % faster, but on 300 texts left 33 % of
    the answers of 6 layers identical to the Program's, this 47 %.) ``x`` is [tokens, I] by now (BadInput if not, or if
    anything but a linear layer reads it). Returns the number of layers.
    """
    import numpy as np

    changed = 0
    for node in [node for node in model.graph if node.op_type == "ThroughTokens"]:
        if len(node.inputs[0].shape or ()) != 2:
            raise BadInput(f"'{node.inputs[0].name}' is not [tokens, width]", where="onnx")
        integers, zero, scale = _quantized_tokens(model, node)
        for user, _ in list(node.outputs[0].uses()):
            weight = _product_weight(user, node.outputs[0], "DequantizeLinear")
            if weight is None:
                what = f"'{node.outputs[0].name}' is read by {user.op_type}, which is no int8 linear layer"
                raise BadInput(f"{what}, and would run in float", where="onnx")
            stored, steps, weight_zero = weight.inputs
            weight_OI = _array(stored)
            if weight_OI.dtype != np.int8 or _array(weight_zero).any():
                raise BadInput(f"'{stored.name}' is not symmetric int8", where="onnx")
            result, one = user.outputs[0], _constant(model, "one", np.array(1, np.float32))
            sums_O = weight_OI.sum(1, dtype=np.int64).astype(np.float32)
            inputs = [
                integers,
                _constant(model, f"{stored.name}_transposed", np.ascontiguousarray(weight_OI.T)),
                one,
                one,
                _constant(model, "zero_point_128", np.array(128, np.uint8)),
            ]
            name = f"{result.name}_sum"
            total = _insert(model, user, "MatMulIntegerToFloat", inputs, name, like=result, domain=CONTRIB)
            row = _constant(model, f"{stored.name}_sums", sums_O[None])
            taken = _insert(model, user, "Mul", [zero, row], f"{result.name}_zero", like=result)
            left = _insert(model, user, "Sub", [total, taken], f"{result.name}_centred", like=result)
            scaled = _insert(model, user, "Mul", [left, scale], f"{result.name}_scaled", like=result)
            made = _insert(model, user, "Mul", [scaled, steps], f"{result.name}_product", like=result)
            _replace_product(model, user, made)
            changed += 1
    _drop_unused(model)
    return changed


def _quantized_tokens(model: ir.Model, before: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """``reference.token_numbers`` of [tokens, I] in ONNX: uint8 [tokens, I], zero points from -128, scales [tokens, 1].

    Every step has the reference's operands in the reference's order, so that it has its bits too. What is spelled
    otherwise gives the same: the comparison has one term on either side; a range of nothing but zeros becomes the
    smallest one whose reciprocal is finite (0 times any scale is 0); the zero point lies in int8 without a clamp; and
    ``QuantizeLinear`` with scale 1 rounds half to even, adds the token's zero point and saturates, all in one reading.
    """
    import numpy as np

    x = before.inputs[0]

    def number(value: float) -> ir.Value:
        return _constant(model, f"number_{value:g}", np.array(value, np.float32))

    def step(op_type: str, name: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return _insert(model, before, op_type, inputs, f"{x.name}_{name}", **attributes)

    last = _constant(model, "last_axis", np.array([-1], np.int64))
    flat = _constant(model, "flat", np.array([-1], np.int64))
    zero_128 = _constant(model, "zero_point_128", np.array(128, np.uint8))
    low = step("Min", "low", step("ReduceMin", "min", x, last), number(0))
    high = step("Max", "high", step("ReduceMax", "max", x, last), number(0))
    extent = step("Max", "extent", step("Sub", "range", high, low), number(SMALLEST_RANGE))
    steps = step("Div", "steps", number(255), extent)
    at_low, at_high = step("Mul", "at_low", low, steps), step("Mul", "at_high", high, steps)
    beyond = step("Add", "beyond_high", at_high, number(127)), step("Sub", "beyond_low", number(128), at_low)
    from_low, from_high = step("Sub", "from_low", number(-128), at_low), step("Sub", "from_high", number(127), at_high)
    chosen = step("Where", "chosen", step("Greater", "high_errs_more", *beyond), from_low, from_high)
    stored = step("QuantizeLinear", "zero_point", chosen, number(1), zero_128)
    ones = step("Reshape", "ones", step("Div", "one", steps, steps), flat)
    zeros = step("Reshape", "zero_points", stored, flat)
    scaled = step("Mul", "scaled", x, steps)
    integers = step("QuantizeLinear", "integers", scaled, ones, zeros, axis=0)
    return integers, step("DequantizeLinear", "zero", stored, number(1), zero_128), step("Reciprocal", "scale", steps)


def spell_groups(model: ir.Model) -> int:
    """``MatMul(x, Transpose(DequantizeGroups(W, scales)))`` becomes ``MatMulNBits``: two int4 in a byte.

    Its accuracy level is 1, float32 sums: 0 leaves the choice to the runtime, 2 and 3 are halves, and 4 would quantize
    the activations too, which no scheme here says (on random numbers level 4 errs by 1e-2, level 1 by 1e-6).
    Returns the number of layers.
    """
    import numpy as np

    changed = 0
    for node in [node for node in model.graph if node.op_type == "DequantizeGroups"]:
        stored, scales = node.inputs
        weight_OI, scales_OG = _array(stored), _array(scales)
        (outputs, inputs), group = weight_OI.shape, weight_OI.shape[1] // scales_OG.shape[1]
        shifted = (weight_OI + 8).astype(np.uint8).reshape(outputs, -1, group)
        packed = _constant(model, f"{stored.name}_packed", shifted[..., ::2] | shifted[..., 1::2] << 4)
        flat = _constant(model, f"{stored.name}_scales", scales_OG.ravel())
        numbers = {"K": inputs, "N": outputs, "bits": 4, "block_size": group, "accuracy_level": 1}
        for user, weight in _products(node):
            x, result = user.inputs[0], user.outputs[0]
            if weight is not node:
                raise BadInput(f"'{stored.name}' is read by {user.op_type}, not by a linear layer", where="onnx")
            name = f"{result.name}_product"
            made = _insert(model, user, "MatMulNBits", [x, packed, flat], name, like=result, domain=CONTRIB, **numbers)
            _replace_product(model, user, made)
            changed += 1
    _drop_unused(model)
    return changed


def spell_weights(model: ir.Model) -> int:
    """Int8 weights of float layers: ``Mul(Cast(W), scale)`` for ``DequantizeLinear``, the same product.

    onnxruntime computes that once, when it opens the file, and the layer is as fast as a float one. A
    DequantizeLinear it keeps, and runs again for every input, or fuses it to kernels that sum in integers. Layers whose
    activations are integers keep theirs. Returns the number of weights.
    """
    import numpy as np
    import onnx_ir as ir

    changed = 0
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        stored, scale = node.inputs[:2]
        if _array(stored) is None or _array(stored).dtype != np.int8 or _array(stored).ndim != 2:
            continue
        products = _products(node)
        if any(weight is not node or _made_by(user.inputs[0]) == "DequantizeLinear" for user, weight in products):
            continue
        column = _constant(model, f"{scale.name}_column", _array(scale)[:, None])
        cast = _insert(model, node, "Cast", [stored], f"{stored.name}_cast", like=node.outputs[0], to=ir.DataType.FLOAT)
        whole = _insert(model, node, "Mul", [cast, column], f"{stored.name}_float", like=node.outputs[0])
        ir.convenience.replace_all_uses_with(node.outputs[0], whole)
        changed += 1
    _drop_unused(model)
    return changed


def spell_halves(model: ir.Model) -> int:
    """``Widen`` becomes ``Cast``: the marker only kept the exporter from storing floats. Returns how many."""
    import onnx_ir as ir

    markers = [node for node in model.graph if node.op_type == "Widen"]
    for node in markers:
        result = node.outputs[0]
        cast = _insert(model, node, "Cast", node.inputs, f"{result.name}_float", like=result, to=ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(result, cast)
    _drop_unused(model)
    return len(markers)


# Linear layers as the exporter spells them: ``Gemm(x, W, b)``, or ``MatMul(x, Transpose(W))`` and perhaps an Add.


def _products(weight: ir.Node) -> list[tuple[ir.Node, ir.Node | None]]:
    """(Node, what makes its weight [out, in]) of all that read ``weight``, through a Transpose or not."""
    found = []
    for user, _ in weight.outputs[0].uses():
        readers = [use.node for use in user.outputs[0].uses()] if user.op_type == "Transpose" else [user]
        found += [(reader, _product_weight(reader, reader.inputs[0], weight.op_type)) for reader in readers]
    return found


def _product_weight(node: ir.Node, x: ir.Value, op_type: str) -> ir.Node | None:
    """The node of this type that makes the weight [out, in] which ``node`` multiplies ``x`` with, if it does that."""
    if len(node.inputs) < 2 or node.inputs[0] is not x:
        return None
    weight = node.inputs[1].producer()
    if node.op_type == "MatMul" and weight is not None and weight.op_type == "Transpose":
        weight = weight.inputs[0].producer()
    elif node.op_type != "Gemm" or not _plain(node):
        return None
    return weight if weight is not None and weight.op_type == op_type else None


def _plain(gemm: ir.Node) -> bool:
    """Whether it is ``x W^T``, and perhaps a bias."""
    transposed = gemm.attributes.get_int("transA", 0) == 0 and gemm.attributes.get_int("transB", 0) == 1
    return transposed and all(gemm.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))


def _replace_product(model: ir.Model, node: ir.Node, product: ir.Value) -> None:
    """``product`` in place of what ``node`` gives; with the bias added where ``node`` is a Gemm that has one."""
    result = node.outputs[0]
    if len(node.inputs) > 2:
        product = _insert(model, node, "Add", [product, node.inputs[2]], f"{result.name}_biased", like=result)
    _replace(result, product)


def _made_by(value: ir.Value) -> str | None:
    producer = value.producer()
    return None if producer is None else producer.op_type


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
    inputs: Sequence[ir.Value | None],
    name: str,
    like: ir.Value | None = None,
    domain: str = "",
    **attributes: int,
) -> ir.Value:
    """The output ``name`` of a new node placed before another; type and shape are those of ``like``."""
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes=attributes, domain=domain)
    node.outputs[0].name = name
    if like is not None:
        node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _replace(old: ir.Value, new: ir.Value) -> None:
    """``new`` wherever ``old`` is used; an output of the graph keeps its name."""
    import onnx_ir as ir

    if old.is_graph_output():
        old.name, new.name = f"{old.name}_before", old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _drop_unused(model: ir.Model) -> None:
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
