"""The Program: one exported graph per scheme, its golden examples, and its outputs computed in integers.

The graph is the transformers model with the task's ``logits`` behind it, so that every target sees one function
from the task's inputs to one tensor, whatever the task. Refused by torch.export: a model that branches on values.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.quantize.integer import to_integers
from edgekd.quantize.qat import same_length_batches
from edgekd.teach.transformers import Encoded, length, pad

FILE, GOLDEN, REFERENCE = "program.pt2", "golden.json", "reference.safetensors"
GOLDEN_EXAMPLES, GOLDEN_NUMBERS = 8, 400_000  # at most so many, and (but for two examples) so many input numbers
PIXELS = "pixel_values"
AXES = ("batch", "sequence")  # the only dynamic ones, in this order


def export(model: nn.Module, task: Any, row: Encoded, max_length: int) -> torch.export.ExportedProgram:
    """``forward(*task.INPUTS) -> logits`` with dynamic batch and, for token inputs, sequence (2 to ``max_length``).

    ``row`` is any encoded row; only the size of its image counts. Same model, same bytes.
    """
    batch = torch.export.Dim(AXES[0], min=1, max=4096)
    sequence = torch.export.Dim(AXES[1], min=2, max=max_length)
    example, shapes = [], {}
    for name in task.INPUTS:
        if name == PIXELS:
            example.append(torch.ones(2, *np.shape(row[name])))
            shapes[name] = {0: batch}
        else:
            example.append(torch.ones(2, 3, dtype=torch.int64))
            shapes[name] = {0: batch, 1: sequence}
    wrapped = _named(model.eval().requires_grad_(False), task)
    return once(torch.export.export(wrapped, tuple(example), dynamic_shapes=shapes))


def once(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with each product of an activation and a constant in it once (``smooth.py``), in place.

    Constants are compared by value: what was moved to an accelerator and back is shared no more.
    """
    constants = program.graph_signature.inputs_to_buffers
    values = {**program.constants, **program.state_dict}  # buffers that no state dict keeps are among the former
    made: dict[Any, list[tuple[torch.Tensor, torch.fx.Node]]] = {}
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor):
        x, factor = node.args
        name = constants.get(getattr(factor, "name", ""))
        if name is None:
            continue
        value, seen = values[name], made.setdefault(x, [])
        first = next((one for same, one in seen if same.dtype == value.dtype and torch.equal(same, value)), None)
        if first is None:
            seen.append((value, node))
        else:
            node.replace_all_uses_with(first)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _named(model: nn.Module, task: Any) -> nn.Module:
    """The model as a plain function whose parameters are named as the task's inputs."""

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            named = dict(zip(task.INPUTS, inputs, strict=True))
            logits: torch.Tensor = task.logits(self.model(**named), named)
            return logits

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [inspect.Parameter(name, kind) for name in ("self", *task.INPUTS)]
    Logits.forward.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    return Logits().eval()


def save(program: torch.export.ExportedProgram, out: Path) -> None:
    """Write ``program.pt2``."""
    torch.export.save(program, out / FILE)


def signature(program: torch.export.ExportedProgram, task: Any) -> dict[str, list[dict[str, Any]]]:
    """``{"inputs": [{"name", "dtype", "shape"}, ..], "outputs": [..]}``; dynamic axes by name, the others by size."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    inputs = [values[name] for name in program.graph_signature.user_inputs]
    (output,) = program.graph_signature.user_outputs
    return {
        "inputs": [_described(name, value) for name, value in zip(task.INPUTS, inputs, strict=True)],
        "outputs": [_described("logits", values[output])],
    }


def _described(name: str, value: torch.Tensor) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else AXES[axis] for axis, size in enumerate(value.shape)]
    return {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def integer_module(program: torch.export.ExportedProgram) -> nn.Module:
    """The Program as a callable that computes in integers."""
    module = program.module()
    return to_integers(module)  # type: ignore[arg-type]


def run(module: nn.Module, task: Any, encoded: Sequence[Encoded], *, size: int = 64) -> list[torch.Tensor]:
    """Output of each row (``task.take``) in row order; batches hold rows of one length, so padding plays no part."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
    for rows in same_length_batches(encoded, size):
        logits = _forward(module, task, [encoded[row] for row in rows])
        for row, one in zip(rows, logits, strict=True):
            found[row] = task.take(one, encoded[row]).clone()
    return found


def golden(module: nn.Module, task: Any, texts: Sequence[str], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """Golden examples spread over the lengths, each run alone: texts, inputs, and logits as the Program gives them.

    Pixels are rounded to three decimals first, and there are fewer large images than texts: both are numbers in JSON.
    """
    order = sorted(range(len(encoded)), key=lambda row: (length(encoded[row]), row))
    numbers = max(sum(np.size(encoded[row][name]) for name in task.INPUTS) for row in order)
    count = min(GOLDEN_EXAMPLES, len(order), max(2, GOLDEN_NUMBERS // numbers))
    picked = [order[round(k * (len(order) - 1) / max(1, count - 1))] for k in range(count)]
    rows = [{name: _plain(encoded[row][name]) for name in task.INPUTS} for row in picked]
    return {
        "texts": [texts[row] for row in picked],
        "inputs": {name: [row[name] for row in rows] for name in task.INPUTS},
        "outputs": {"logits": [_forward(module, task, [row])[0].tolist() for row in rows]},
    }


def _plain(values: Any) -> list[Any]:
    array = np.asarray(values)
    plain: list[Any] = (array.astype(np.float64).round(3) if array.dtype.kind == "f" else array).tolist()
    return plain


def _forward(module: nn.Module, task: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """Logits [B, C] or [B, S, C] of rows of one length."""
    with torch.inference_mode():
        logits: torch.Tensor = module(*pad(rows, 0, task.INPUTS).values())
    return logits.clone()
