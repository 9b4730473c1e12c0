"""The Program, executed as integer kernels execute it.

A float run of quantize/dequantize operators rounds at places where integer kernels do not, and flips ties that
they do not flip. So every quantized linear layer of the graph is computed as XNNPACK, LiteRT and onnxruntime
compute it: an exact int32 accumulator with an int32 bias, one float32 multiplier ``s_in * s_w / s_out``, rounding
half to even, clamping to int8 (Jacob et al. 2018, arXiv:1712.05877, with a float instead of a fixed-point
multiplier). The input is quantized by multiplying with the float32 reciprocal of its scale, as XNNPACK and
PyTorch do; onnxruntime divides, which differs on rare ties. A dynamic layer takes a scale for each token from the
token itself, in float32 as XNNPACK does, and gives floats. Layers whose weights alone are integers compute in float,
as their scheme says. A layer that is only half quantized is an error, never silently float.

Between them, attention, norms and activations are floats, summed and approximated by every runtime in its own way:
the last bit differs, and now and then a value falls to the other side of a rounding tie. They are computed in float64
here and rounded once, so that a runtime differs from the Program by its own error alone, not by PyTorch's too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from edgekd.quantize.reference import quantize_tokens, token_numbers

qd = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT, DEQUANTIZE_GROUPS = qd.dequantize_per_channel.default, qd.dequantize_per_channel_group.default
TOKENS = qd.choose_qparams_per_token_asymmetric.default
QUANTIZE_TOKENS, DEQUANTIZE_TOKENS = qd.quantize_per_token.default, qd.dequantize_per_token.default
LINEAR = torch.ops.aten.linear.default
aten = torch.ops.aten
FLOATS = (  # of one rounding
    aten.layer_norm.default,
    aten.scaled_dot_product_attention.default,
    aten.softmax.int,
    aten.gelu.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.rsqrt.default,
    aten.mean.dim,
)


def int8_linear(
    x_q: torch.Tensor,
    in_scale: float,
    in_zero: int,
    weight_q: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
    out_scale: float,
    out_zero: int,
) -> torch.Tensor:
    """int8 [..., I] times int8 [O, I] to int8 [..., O]. float64 holds the 32-bit accumulator exactly."""
    accumulator = _accumulated(x_q, in_scale, in_zero, weight_q, w_scale, bias)
    one = torch.tensor
    multiplier = one(in_scale, dtype=torch.float32) * w_scale / one(out_scale, dtype=torch.float32)
    return ((accumulator.float() * multiplier).round() + out_zero).clamp(-128, 127).to(torch.int8)


def int8_linear_float(
    x_q: torch.Tensor,
    in_scale: float,
    in_zero: int,
    weight_q: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """int8 [..., I] times int8 [O, I] to float32 [..., O]: the same accumulator and bias, scaled once."""
    accumulator = _accumulated(x_q, in_scale, in_zero, weight_q, w_scale, bias)
    return accumulator.float() * (torch.tensor(in_scale, dtype=torch.float32) * w_scale)


def _accumulated(
    x_q: torch.Tensor,
    in_scale: float,
    in_zero: int,
    weight_q: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """The int32 accumulator of a static layer, its int32 bias included, as float64 [..., O]."""
    bias_q = (bias.double() / (in_scale * w_scale.double())).round()
    return F.linear(x_q.double() - in_zero, weight_q.double()) + bias_q


def int8_linear_tokens(
    x: torch.Tensor, weight_q: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """float32 [..., I] times int8 [O, I] to float32 [..., O]: every token in int8 by a scale of its own.

    ``acc * s_token * s_weight + bias``, the second product and the sum in one rounding, as XNNPACK's kernels with
    fused multiply-add give it.
    """
    steps, zero = token_numbers(x)
    accumulator = F.linear(quantize_tokens(x, steps, zero).double() - zero.double(), weight_q.double())
    product = (accumulator.float() * (1 / steps)).double() * w_scale.double()
    return (product if bias is None else product + bias.double()).float()


def to_integers(module: GraphModule) -> GraphModule:
    """Rewrite a Program's graph in place so that its int8 layers run in integers; a float Program stays as it is.

    Raises ValueError for any quantize or dequantize operator that is not part of a canonical layer: what is
    not recognised would run in float, and nobody would see it.
    """
    graph = module.graph
    for node in [node for node in graph.nodes if node.target is LINEAR]:
        source, weight = node.args[0], node.args[1]
        if source.target is DEQUANTIZE:
            _static(module, node)
        elif source.target is DEQUANTIZE_TOKENS:
            _dynamic(module, node)
        elif weight.target is DEQUANTIZE_WEIGHT:
            if any(user.target is QUANTIZE and user.args[0] is node for user in node.users):
                raise ValueError(f"{node.name}: its output is quantized and its input is not; it is half quantized")
            _weight(weight, module)
    graph.eliminate_dead_code()
    if any(node.target in (int8_linear, int8_linear_float, int8_linear_tokens) for node in graph.nodes):
        round_floats(graph)
    for node in graph.nodes:
        if node.target is DEQUANTIZE and node.args[0].target is int8_linear:
            if _activation(node, DEQUANTIZE)[1:] != node.args[0].args[6:]:
                raise ValueError(f"{node.name}: a layer's output is not dequantized as it was quantized")
        elif node.target in (DEQUANTIZE, DEQUANTIZE_TOKENS):
            raise ValueError(f"{node.name}: something beside a linear layer reads quantized numbers")
        elif node.target in (DEQUANTIZE_WEIGHT, DEQUANTIZE_GROUPS) and any(u.target is not LINEAR for u in node.users):
            raise ValueError(f"{node.name}: something beside a linear layer reads quantized weights")
    module.recompile()
    return module


def round_floats(graph: Graph) -> None:
    """Compute the float operators of a graph in float64, each rounded once, in place."""
    for node in graph.nodes:
        if node.target in FLOATS:
            node.target = rounded_once(node.target)


@functools.cache
def rounded_once(operator: OpOverload) -> Callable[..., torch.Tensor]:
    """The operator on float32 tensors, computed in float64 and rounded to float32."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

    def computed(*args: Any, **kwargs: Any) -> torch.Tensor:
        found: torch.Tensor = operator(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})
        return found.float()

    return computed


def _static(module: GraphModule, node: Node) -> None:
    """A layer of int8 activations; its output is int8 where a quantizer is all that reads it, else float."""
    if len(node.args) != 3:
        raise ValueError(f"{node.name}: it has no bias")
    x_q, in_scale, in_zero = _activation(node.args[0], DEQUANTIZE)
    if _activation(x_q, QUANTIZE)[1:] != (in_scale, in_zero):
        raise ValueError(f"{node.name}: its input is not dequantized as it was quantized")
    weight_q, w_scale = _weight(node.args[1], module)
    numbers = (x_q, in_scale, in_zero, weight_q, w_scale, node.args[2])
    output, *others = node.users
    if others or output.target is not QUANTIZE:
        _replace(module, node, int8_linear_float, numbers)
    else:
        _replace(module, output, int8_linear, numbers + _activation(output, QUANTIZE)[1:])


def _dynamic(module: GraphModule, node: Node) -> None:
    x_q, scale, zero, *rest = node.args[0].args
    choice = getattr(scale, "args", (None,))[0]
    if (
        not isinstance(choice, Node)
        or choice.target is not TOKENS
        or tuple(rest) != (-128, 127, torch.int8, torch.float32)
        or x_q.target is not QUANTIZE_TOKENS
        or tuple(x_q.args) != (choice.args[0], scale, zero, -128, 127, torch.int8)
        or zero.args != (choice, 1)
        or scale.args != (choice, 0)
    ):
        raise ValueError(f"{node.name}: its input is not dequantized as it was quantized")
    weight_q, w_scale = _weight(node.args[1], module)
    bias = node.args[2] if len(node.args) > 2 else None
    _replace(module, node, int8_linear_tokens, (choice.args[0], weight_q, w_scale, bias))


def _replace(module: GraphModule, node: Node, function: Callable[..., torch.Tensor], numbers: tuple[Any, ...]) -> None:
    with module.graph.inserting_before(node):
        made = module.graph.call_function(function, numbers)
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)


def _activation(node: Any, target: OpOverload) -> tuple[Any, float, int]:
    """Source, scale and zero point of an int8 quantize or dequantize node."""
    if not isinstance(node, Node) or node.target is not target or tuple(node.args[3:]) != (-128, 127, torch.int8):
        raise ValueError(f"expected {target} to int8, found {node}; the layer is only half quantized")
    return node.args[0], node.args[1], node.args[2]  # type: ignore[return-value]


def _weight(node: Any, module: GraphModule) -> tuple[Node, Node]:
    """Integers and scales of a folded weight, symmetric per output channel."""
    if not isinstance(node, Node) or node.target is not DEQUANTIZE_WEIGHT:
        raise ValueError(f"expected {DEQUANTIZE_WEIGHT}, found {node}; the layer is only half quantized")
    weight_q, w_scale, w_zero, *rest = node.args
    if tuple(rest) != (0, -127, 127, torch.int8) or attrgetter(w_zero.target)(module).any():
        raise ValueError(f"{node.name}: its weight is not symmetric int8 per output channel")
    return weight_q, w_scale  # type: ignore[return-value]
