"""How the integers of weights are chosen when activations stay in float: rounding alone, or with data.

``absmax`` cuts nothing. ``mse`` takes, for every group of int4 weights, the scale that loses least of them. ``gptq``
(arXiv:2210.17323) and ``awq`` (arXiv:2306.00978, its clipping alone) come from neural-compressor: it chooses integers
and scales, and they are carried into our layers as they are, so that what it found is what the Program holds. Layers
that it does not return keep ``mse``; so do int8 rows their rounding, which of these ``gptq`` alone can better. (Its
AutoRound saves the model and loads it again as a language model, which an encoder is not.)
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgekd.errors import Environment
from edgekd.quantize import reference
from edgekd.quantize.scheme import LAYERS, Scheme
from edgekd.tasks._contract import generates
from edgekd.teach.transformers import Encoded, pad

LIBRARY = ("gptq", "awq")
ROWS = "w8"  # the scheme of int8 rows beside float activations
Numbers = dict[str, tuple[torch.Tensor, torch.Tensor]]  # layer name -> integers [O, I], scales [O, I / group] or [O, 1]
FACTORS = torch.linspace(0.7, 1.0, 13)  # shares of the scale that cuts nothing, and of max |w| / 8 on the wider side


def choose(
    model: nn.Module,
    student: nn.Module,
    scheme: Scheme,
    how: str,
    rows: Sequence[Encoded],
    task: Any,
    pad_id: int,
    found: Numbers | None = None,
) -> dict[str, int]:
    """Set the scales (and, by a library, the weights) of the int4 layers of ``model`` (prepared) in place; GPTQ chooses
    the int8 weights of ``w8`` too.

    ``student`` is the float model it came from, ``rows`` calibrate. A library works on all of its layers, whatever the
    scheme's overrides: ``found`` keeps what it chose for further models of one student, scheme and group. Returns how
    many layers were chosen in each way. Raises Environment where the library is missing.
    """
    groups = {name: layer for name, layer in reference.layers(model) if layer.kind.group}
    if how != "absmax":
        for layer in groups.values():
            layer.w_scale.copy_(least_squares(layer.weight, layer.kind.group))
    chosen = dict.fromkeys(groups, "absmax" if how == "absmax" else "mse")
    layers = groups  # the library's
    if scheme.name == ROWS:  # int4 layers are exceptions in it, and there is nothing to cut in int8 rows
        int8 = {name: layer for name, layer in reference.layers(model) if layer.kind.name == ROWS and layer.any_scale}
        layers = int8 if how == "gptq" else {}
    if how not in LIBRARY or not layers:
        return dict(Counter(chosen.values()))
    found = {} if found is None else found
    if not found:
        found.update(_from_library(student, scheme, how, rows, task, pad_id))
    for name in layers.keys() & found:
        weight_q, scale = found[name]
        layers[name].register_buffer("w_scale", (scale if layers[name].kind.group else scale[:, 0]).clone())
        layers[name].weight.data.copy_(reference.dequantized(weight_q, scale))
        chosen[name] = how
    return dict(Counter(chosen.values()))


def least_squares(weight_OI: torch.Tensor, group: int) -> torch.Tensor:
    """int4 scales [O, I / group] with the smallest squared error of each group, among a few shares of two scales.

    The integers run from -8 to 7: where the largest weight is negative, max |w| / 8 cuts nothing either.
    """
    rows = weight_OI.detach().float().reshape(-1, group)
    largest = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).eps)
    best = reference.group_scale(weight_OI, group).reshape(-1)
    error = _error(rows, best)
    for base in (7.0, 8.0):
        for factor in FACTORS.tolist():
            scale = largest * (factor / base)
            found = _error(rows, scale)
            best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    return best.reshape(len(weight_OI), -1)


def _error(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (reference.quantize_groups(rows, scale[:, None]) * scale[:, None] - rows).square().sum(1)


def _from_library(
    student: nn.Module, scheme: Scheme, how: str, rows: Sequence[Encoded], task: Any, pad_id: int
) -> Numbers:
    """Layer name -> (integers [O, I], scales [O, I / group]), both float32, as neural-compressor chooses them; int8
    rows are one group each.

    By itself it walks one stack of blocks, and gives each what the first was given beside its input. An encoder with a
    decoder has two, and T5's first block makes a bias for the others: so every block is handed to it alone, with the
    calls that the model makes of it; for GPTQ with the blocks before it rounded.
    """
    if importlib.util.find_spec("neural_compressor") is None:
        raise Environment(
            f"quantize.weights: {how} needs neural-compressor", todo="pip install 'edgekd[compress]', or take mse."
        )
    from neural_compressor.torch import quantization as library
    from neural_compressor.torch.utils import get_accelerator

    logging.getLogger("neural_compressor").setLevel(logging.ERROR)  # it warns of every block that it has no head
    place, flags = get_accelerator().current_device_name(), {"use_cache": False} if generates(task) else {}
    batches = [pad(some, pad_id, task.INPUTS) for some in _alike(rows, task.INPUTS, 16)]
    batches = [{name: one.to(place) for name, one in batch.items()} | flags for batch in batches]
    model = copy.deepcopy(student).to(place)
    # A group of -1 is a whole row, to the library; and any width divides by it.
    bits, group = (LAYERS[ROWS].weight_bits, -1) if scheme.name == ROWS else (LAYERS["w4"].weight_bits, scheme.group)
    found: Numbers = {}
    for name, block in _blocks(model):
        layers = {inner: layer for inner, layer in block.named_modules() if type(layer) is nn.Linear}
        calls = _calls(model, block, batches) if layers else []
        if not calls:
            continue
        stack, settings = _Stack(copy.deepcopy(block), calls), _settings(library, how, bits, group, list(layers))
        prepared = library.prepare(stack, settings, example_inputs=torch.zeros(1))
        with torch.no_grad():
            for i in range(len(calls)):
                prepared(i)
        chosen = library.convert(prepared).layers[0]
        for inner, layer in layers.items():
            module = chosen.get_submodule(inner)
            if layer.in_features % group or not hasattr(module, "unpack"):
                continue
            weight_q, scale = found[f"{name}.{inner}"] = _numbers(module)
            if how == "gptq":
                layer.weight.data.copy_(reference.dequantized(weight_q, scale))
    return found


def _settings(library: Any, how: str, bits: int, group: int, layers: Sequence[str]) -> Any:
    common = {"bits": bits, "use_sym": True, "group_size": group}
    if how == "gptq":
        return library.GPTQConfig(**common, act_order=False, model_path=".")  # not read; without one it asks the hub
    # Its scaling would change other layers too. Without it each layer stands for itself, which need not be traced.
    return library.AWQConfig(**common, use_auto_scale=False, absorb_layer_dict={name: name for name in layers})


def _numbers(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = {name: one.float().cpu() for name, one in module.unpack().items() if one is not None}
    weight_q, scale = numbers["int_weight"], numbers["scales"]
    if "zp" in numbers:
        weight_q = weight_q - numbers["zp"].repeat_interleave(weight_q.shape[1] // scale.shape[1], 1)
    return weight_q.clamp_min(-reference.WMAX), scale  # it takes -128 where -127 is as near (max |w| is 127.5 steps)


def _alike(rows: Sequence[Encoded], names: Sequence[str], size: int) -> list[list[Encoded]]:
    """Batches of rows whose inputs are as long, each of them: nothing is padded, targets neither."""
    groups: dict[tuple[int, ...], list[Encoded]] = {}
    for row in rows:
        groups.setdefault(tuple(len(row[name]) for name in names if name in row), []).append(row)
    return [some[i : i + size] for _, some in sorted(groups.items()) for i in range(0, len(some), size)]


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What the outermost lists of modules hold: the layers of every stack, in the order in which they run."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_children():
        within = list(module.named_children()) if isinstance(module, nn.ModuleList) else _blocks(module)
        found += [(f"{name}.{rest}", block) for rest, block in within]
    return found


class _Reached(Exception):
    """The block is called: what follows it need not run."""


def _calls(model: nn.Module, block: nn.Module, batches: Sequence[dict[str, Any]]) -> list[Any]:
    """How the model first calls ``block`` for each batch: positional arguments, and those by name."""
    calls: list[Any] = []

    def note(_: nn.Module, *given: Any) -> None:
        calls.append(given)
        raise _Reached

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        for batch in batches:
            with contextlib.suppress(_Reached):
                model(**batch)
    handle.remove()
    return calls


class _Stack(nn.Module):
    """A block as the only one of a stack; it is called by the number of a call, and answers to that."""

    def __init__(self, block: nn.Module, calls: Sequence[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block])
        for module in block.modules():
            if isinstance(module, nn.ModuleList | nn.Sequential):  # the library would take it for the stack
                module.__class__ = type(type(module).__name__, (type(module),), {})
        forward = block.forward
        block.forward = lambda i: forward(*calls[i][0], **calls[i][1])

    def forward(self, i: int) -> Any:
        return self.layers[0](i)
