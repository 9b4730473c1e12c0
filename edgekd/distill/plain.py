"""A student in modules that transformers has, for everything that opens a model folder without edgekd.

A factorised word table is multiplied out: the same rows up to float rounding, and a larger table. Heads that are
fewer than the width would hold come with heads of zeros, which attend to everything and add nothing. Refused: heads
of a width that does not divide the model's, because no transformers configuration describes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.distill import pruning, student
from edgekd.errors import BadInput


def changes(config: dict[str, Any]) -> list[str]:
    """What ``save`` would have to change in the student of a configuration, in words; nothing for most."""
    words = {
        student.RANK: "its factorised word table is multiplied out",
        student.HEAD_SIZE: "heads of zeros stand for those that were cut out",
    }
    return [text for name, text in words.items() if config.get(name)]


def save(folder: Path, out: Path, model_class: Any) -> None:
    """Write the student in ``folder`` to ``out`` as ``from_pretrained`` of plain transformers reads it."""
    model = student.load(folder, model_class)
    _multiply_out(model)
    _fill_heads(model)
    model.save_pretrained(out)


def _multiply_out(model: Any) -> None:
    table = model.get_input_embeddings()
    if not isinstance(table, student.FactorizedEmbedding):
        return
    whole = nn.Embedding(table.words.num_embeddings, table.up.out_features)
    with torch.no_grad():
        whole.weight.copy_(table.up(table.words.weight))
    model.set_input_embeddings(whole)
    delattr(model.config, student.RANK)


def _fill_heads(model: Any) -> None:
    size = getattr(model.config, student.HEAD_SIZE, None)
    if size is None:
        return
    width, heads = student.read(model.config, "hidden_size"), student.read(model.config, "heads")
    if width % size or heads * size > width:
        raise BadInput(
            f"{heads} heads of {size} in a width of {width} are no model that transformers can describe",
            where="hub",
            todo=f"Distil a student whose hidden_size is a multiple of {size}, and at least {heads * size}.",
        )
    layers, roles = pruning.encoder(model)
    for layer in layers:
        for name, axis in ((roles.query, 0), (roles.key, 0), (roles.value, 0), (roles.out, 1)):
            linear = layer.get_submodule(name)
            linear.weight = nn.Parameter(_padded(linear.weight, axis, width))
            if linear.bias is not None and axis == 0:
                linear.bias = nn.Parameter(_padded(linear.bias, 0, width))
    student.write(model.config, "heads", width // size)
    delattr(model.config, student.HEAD_SIZE)


def _padded(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The tensor with zeros behind it along one axis."""
    missing = list(tensor.shape)
    missing[axis] = size - tensor.shape[axis]
    return torch.cat([tensor.detach(), tensor.new_zeros(missing)], axis)
