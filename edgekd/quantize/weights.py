"""How the integers of weights are chosen when activations stay in float: rounding alone, or with data.

``absmax`` cuts nothing. ``mse`` takes, for every group of int4 weights, the scale that loses least of them. ``gptq``
(arXiv:2210.17323) and ``awq`` (arXiv:2306.00978, its clipping alone) come from neural-compressor: it chooses integers
and scales, and they are carried into our layers as they are, so that what it found is what the Program holds. Layers
that it does not return keep ``mse``. (Its AutoRound saves the model and loads it again as a language model, which an
encoder is not.)
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgekd.errors import Environment
from edgekd.quantize import reference
from edgekd.quantize.qat import same_length_batches
from edgekd.quantize.scheme import LAYERS, Scheme
from edgekd.teach.transformers import Encoded, pad

LIBRARY = ("gptq", "awq")
Numbers = dict[str, tuple[torch.Tensor, torch.Tensor]]  # layer name -> integers [O, I], scales [O, I / group]
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
) -> None:
    """Set the scales (and, by a library, the weights) of the int4 layers of ``model`` (prepared) in place.

    ``student`` is the float model it came from, ``rows`` calibrate. A library works on all of its layers, whatever the
    scheme's overrides: ``found`` keeps what it chose for further models of one student and group. Raises Environment
    where the library is missing.
    """
    layers = {name: layer for name, layer in reference.layers(model) if layer.kind.group}
    if not layers:
        return
    if how == "mse" or how in LIBRARY:
        for layer in layers.values():
            layer.w_scale.copy_(least_squares(layer.weight, layer.kind.group))
    if how in LIBRARY:
        found = {} if found is None else found
        if not found:
            found.update(_from_library(student, scheme, how, rows, task, pad_id))
        for name, (weight_q, scale) in found.items():
            if name in layers:
                layers[name].w_scale.copy_(scale)
                layers[name].weight.data.copy_(weight_q * scale.repeat_interleave(scheme.group, 1))


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
    """Layer name -> (integers [O, I], scales [O, I / group]), both float32, as neural-compressor chooses them."""
    if importlib.util.find_spec("neural_compressor") is None:
        raise Environment(
            f"quantize.weights: {how} needs neural-compressor", todo="pip install 'edgekd[compress]', or take mse."
        )
    from neural_compressor.torch import quantization as library

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)
    common = {"bits": LAYERS["w4"].weight_bits, "use_sym": True, "group_size": scheme.group}
    settings = {
        # The path is not read; without one it asks the hub.
        "gptq": lambda: library.GPTQConfig(**common, act_order=False, model_path="."),
        "awq": lambda: library.AWQConfig(**common, use_auto_scale=False),  # its scaling would change other layers too
    }[how]()
    batches = [pad([rows[i] for i in some], pad_id, task.INPUTS) for some in same_length_batches(rows, 16)]
    # It wants the example inputs on one device, as tokenizers give them.
    from transformers import BatchEncoding

    prepared = library.prepare(copy.deepcopy(student), settings, example_inputs=BatchEncoding(batches[0]))
    with torch.no_grad():
        for batch in batches:
            prepared(**batch)
    found: Numbers = {}
    for name, module in library.convert(prepared).named_modules():
        if hasattr(module, "unpack") and hasattr(module, "scales"):
            numbers = module.unpack()
            zero, scale = numbers.get("zp"), numbers["scales"].float()
            weight_q = numbers["int_weight"].float()
            if zero is not None:
                weight_q = weight_q - zero.float().repeat_interleave(scheme.group, 1)
            found[name] = (weight_q, scale)
    return found
