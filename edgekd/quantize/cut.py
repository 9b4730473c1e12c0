"""A Program cut behind one of its layers: what bisection sends through a target to find where numbers part."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekd.artifact import Facts
from edgekd.quantize import program as programs
from edgekd.quantize.integer import DEQUANTIZE, LINEAR, QUANTIZE, to_integers


def layers(folder: Path) -> list[str]:
    """Names of the linear layers of the Program in ``folder``, in the order in which they are computed."""
    return [_name(node) for node in _linears(_read(folder).module().graph)]


def sources(folder: Path) -> list[set[int]]:
    """For every layer, the layers that its input is computed from, by number."""
    found: dict[Node, set[int]] = {}
    order: list[set[int]] = []
    for node in _read(folder).module().graph.nodes:
        found[node] = set().union(*(found[source] for source in node.all_input_nodes))
        if node.target is LINEAR:
            order.append(set(found[node]))
            found[node].add(len(order) - 1)
    return order


def save(folder: Path, index: int, rows: Sequence[dict[str, np.ndarray]], out: Path) -> tuple[list[np.ndarray], Facts]:
    """Write ``out/program.pt2``, which ends with layer ``index``; its outputs in integers, and their description.

    ``rows`` are inputs by name, batch 1. Outputs are float32 [1, C] or [1, S, C].
    """
    whole = _read(folder)
    module: Any = whole.module()
    _end_with(module, _end(_linears(module.graph)[index]))
    example = tuple(torch.from_numpy(np.concatenate([rows[0][k]] * 2)) for k in rows[0])
    made = torch.export.export(module, example, dynamic_shapes=_dynamic(whole))
    programs.save(made, out)
    integers = to_integers(copy.deepcopy(made.module()))  # type: ignore[arg-type]
    with torch.inference_mode():
        found = [integers(*map(torch.from_numpy, row.values())).numpy().copy() for row in rows]
    shape = ["batch", *(["sequence"] if found[0].ndim == 3 and "input_ids" in rows[0] else found[0].shape[1:-1])]
    return found, {"name": "logits", "dtype": "float32", "shape": [*shape, found[0].shape[-1]]}


def _read(folder: Path) -> torch.export.ExportedProgram:
    return torch.export.load(folder / programs.FILE)


def _linears(graph: torch.fx.Graph) -> list[Node]:
    return [node for node in graph.nodes if node.target is LINEAR]


def _end(linear: Node) -> Node:
    """The value behind a layer: dequantized, where its output is quantized."""
    users = list(linear.users)
    if len(users) == 1 and users[0].target is QUANTIZE:
        return next(user for user in users[0].users if user.target is DEQUANTIZE)
    return linear


def _end_with(module: GraphModule, node: Node) -> None:
    """Keep what ``node`` is computed from alone (dead-code elimination would keep dropout, off as it is)."""
    output = next(iter(reversed(module.graph.nodes)))
    output.args = ((node,),)
    needed, todo = {output}, [output]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                todo.append(source)
    for other in reversed(module.graph.nodes):
        if other not in needed and other.op != "placeholder":
            module.graph.erase_node(other)
    module.recompile()


def _dynamic(program: torch.export.ExportedProgram) -> list[dict[int, Any]]:
    """The dynamic axes of every input, as ``torch.export`` takes them."""
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    ]
    auto = torch.export.Dim.AUTO
    return [{axis: auto for axis, size in enumerate(shape) if not isinstance(size, int)} for shape in shapes]


def _name(node: Node) -> str:
    """The layer's name in the model: its weight's, without what the Program adds."""
    weight: Any = node.args[1]
    while isinstance(weight, Node) and weight.op != "get_attr":
        weight = weight.args[0]
    return str(weight.target).removeprefix("model.").removesuffix(".weight_q").removesuffix(".weight")
