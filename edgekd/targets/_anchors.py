"""Static int8 inputs with float outputs, for kernels that choose the range of their inputs row by row.

XNNPACK multiplies int8 inputs of a static scale to int8 outputs only; to floats it multiplies inputs whose range it
takes from each row. So each row gets two columns more, the ends of the static range: then the range of every row is
the static one, and with it scale and zero point. The weights of these columns are zero. The row was rounded to the
static steps before, so it is found on them again: exactly, because an activation scale has 8 significant bits
(``quantize/reference.py``), and so both ends and their distance are float32 numbers.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from edgekd.errors import BadInput

if TYPE_CHECKING:
    import torch

QMIN, QMAX = -128, 127
ENDS = 2  # columns


def anchor_ranges(module: torch.fx.GraphModule) -> int:
    """Respell every layer of static int8 inputs and float output with inputs by token, in place; how many.

    ``linear(static(x), W)`` becomes ``linear(by_token(cat([static(x), low, high])), [W, 0, 0])``.
    """
    import torch
    import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

    aten, ops = torch.ops.aten, torch.ops.quantized_decomposed
    graph, replaced = module.graph, []
    anchored: dict[tuple[torch.fx.Node, float, int], torch.fx.Node] = {}
    for node in list(graph.find_nodes(op="call_function", target=aten.linear.default)):
        source, weight = node.args[:2]
        if source.target is not ops.dequantize_per_tensor.default:
            continue
        if any(user.target is ops.quantize_per_tensor.default for user in node.users):
            continue
        x, scale, zero = source.args[0].args[:3]
        if weight.target is not ops.dequantize_per_channel.default:
            raise BadInput(f"'{node.name}' has static int8 inputs and other weights than int8", where="anchor_ranges")
        stored: torch.Tensor = operator.attrgetter(str(weight.args[0].target))(module)
        wide = f"anchored_weight_{len(replaced)}"
        module.register_buffer(wide, torch.nn.functional.pad(stored, (0, ENDS)))
        if (x, scale, zero) not in anchored:
            name = f"range_{len(anchored)}"
            module.register_buffer(name, torch.tensor([(end - zero) * scale for end in (QMIN, QMAX)]))
            with graph.inserting_before(node):
                two = graph.call_function(aten.slice.Tensor, (source, -1, 0, ENDS))
                nothing = graph.call_function(aten.mul.Tensor, (two, 0.0))
                ends = graph.call_function(aten.add.Tensor, (nothing, graph.get_attr(name)))
                row = graph.call_function(aten.cat.default, ([source, ends], -1))
                chosen = graph.call_function(ops.choose_qparams_per_token_asymmetric.default, (row, torch.int8))
                numbers = [graph.call_function(operator.getitem, (chosen, index)) for index in (0, 1)]
                limits = (*numbers, QMIN, QMAX, torch.int8)
                integers = graph.call_function(ops.quantize_per_token.default, (row, *limits))
                floats = graph.call_function(ops.dequantize_per_token.default, (integers, *limits, torch.float32))
            anchored[x, scale, zero] = floats
        with graph.inserting_before(node):
            wider = graph.call_function(weight.target, (graph.get_attr(wide), *weight.args[1:]))
        node.update_arg(0, anchored[x, scale, zero])
        node.update_arg(1, wider)
        replaced.append(str(weight.args[0].target))
    graph.eliminate_dead_code()
    read = {node.target for node in graph.find_nodes(op="get_attr")}
    for name in set(replaced) - read:  # an exporter would store it beside the wider one
        owner, _, buffer = name.rpartition(".")
        delattr(module.get_submodule(owner), buffer)
    module.recompile()
    return len(replaced)
