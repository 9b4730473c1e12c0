"""The Program, executed as integer kernels execute it.

A float run of quantize/dequantize operators rounds at places where integer kernels do not, and flips ties that
they do not flip. So every quantized linear layer of the graph is computed as XNNPACK, LiteRT and onnxruntime
compute it: an exact int32 accumulator with an int32 bias, one float32 multiplier ``s_in * s_w / s_out``, rounding
half to even, clamping to int8 (Jacob et al. 2018, arXiv:1712.05877, with a float instead of a fixed-point
multiplier). The input is quantized by multiplying with the float32 reciprocal of its scale, as XNNPACK and
PyTorch do; onnxruntime divides, which differs on rare ties. A layer that is only half quantized is an error,
never silently float.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

qd = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT = qd.dequantize_per_channel.default
LINEAR = torch.ops.aten.linear.default


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
    bias_q = (bias.double() / (in_scale * w_scale.double())).round()
    accumulator = F.linear(x_q.double() - in_zero, weight_q.double()) + bias_q
    one = torch.tensor
    multiplier = one(in_scale, dtype=torch.float32) * w_scale / one(out_scale, dtype=torch.float32)
    return ((accumulator.float() * multiplier).round() + out_zero).clamp(-128, 127).to(torch.int8)


def to_integers(module: GraphModule) -> GraphModule:
    """Rewrite a Program's graph in place so that its quantized layers run in integers; a float Program stays as it is.

    Raises ValueError for any quantize or dequantize operator that is not part of a canonical layer: what is
    not recognised would run in float, and nobody would see it.
    """
    graph = module.graph
    if not any(node.target in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_WEIGHT) for node in graph.nodes):
        return module
    for node in [node for node in graph.nodes if node.target is LINEAR]:
        users = list(node.users)
        if len(node.args) != 3 or len(users) != 1 or users[0].target is not QUANTIZE:
            raise ValueError(f"{node.name}: it has no bias, or its output is not quantized once")
        x_q, in_scale, in_zero = _activation(node.args[0], DEQUANTIZE)
        if _activation(x_q, QUANTIZE)[1:] != (in_scale, in_zero):
            raise ValueError(f"{node.name}: its input is not dequantized as it was quantized")
        weight_q, w_scale = _weight(node.args[1], module)
        output = users[0]
        out_scale, out_zero = _activation(output, QUANTIZE)[1:]
        with graph.inserting_before(output):
            numbers = (x_q, in_scale, in_zero, weight_q, w_scale, node.args[2], out_scale, out_zero)
            made = graph.call_function(int8_linear, numbers)
        output.replace_all_uses_with(made)
        graph.erase_node(output)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.target is DEQUANTIZE and node.args[0].target is int8_linear:
            if _activation(node, DEQUANTIZE)[1:] != node.args[0].args[6:]:
                raise ValueError(f"{node.name}: a layer's output is not dequantized as it was quantized")
        elif node.target in (DEQUANTIZE, DEQUANTIZE_WEIGHT):
            raise ValueError(f"{node.name}: something beside a linear layer reads quantized numbers")
    module.recompile()
    return module


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
