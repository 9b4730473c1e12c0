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

import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  registers torch.ops.quantized_decomposed
import torch.nn.functional as F
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
    """Rewrite a Program's graph in place so that its quantized layers run in integers; float Programs stay as they are."""
    linears = [node for node in module.graph.nodes if node.target is LINEAR]
    quantized = [
        node for node in module.graph.nodes if node.target in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_WEIGHT)
    ]
    if not quantized:
        return module
    for node in linears:
        x_q, in_scale, in_zero = _read(node.args[0], DEQUANTIZE, node)[:3]
        weight_q, w_scale = _read(node.args[1], DEQUANTIZE_WEIGHT, node)[:2]
        users = list(node.users)
        if len(users) != 1 or users[0].target is not QUANTIZE or len(node.args) < 3 or node.args[2] is None:
            raise ValueError(f"{node.name}: its output is not quantized once, or it has no bias")
        output = users[0]
        out_scale, out_zero = output.args[1], output.args[2]
        with module.graph.inserting_before(output):
            made = module.graph.call_function(
                int8_linear,
                (x_q, in_scale, in_zero, weight_q, w_scale, node.args[2], out_scale, out_zero),
            )
        output.replace_all_uses_with(made)
        module.graph.erase_node(output)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _read(node: object, target: object, layer: Node) -> tuple[object, ...]:
    if not isinstance(node, Node) or node.target is not target:
        raise ValueError(f"{layer.name}: expected {target}, found {node}; the layer is only half quantized")
    return node.args
