"""A model's outputs over the rows of a split, as one file: how distill, quantize and verify hand them on.

An output is a vector [C] (one answer per row) or a matrix [W, C] (one per unit of the row, such as a word). Both lie
in one safetensors file: ``logits`` [N, C], or ``logits`` [sum W, C] beside ``lengths`` [N] int64. Refuses a file
whose lengths do not add up, because rows would be paired with the wrong answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from edgekd.errors import BadInput


def save_outputs(path: Path, outputs: Sequence[Any], *, rows: Sequence[int] | None = None) -> None:
    """Write the outputs as float32: numpy arrays or CPU tensors, all [C] or all [W, C] (or one [N, C] array).

    ``rows`` are the rows of the split that they belong to, where those are not all of it. Raises ValueError for
    no outputs at all or for outputs of different widths.
    """
    found = [np.asarray(one, np.float32) for one in outputs]
    per_unit = bool(found) and found[0].ndim == 2
    tensors = {"logits": np.concatenate(found) if per_unit else np.stack(found)}
    if per_unit:
        tensors["lengths"] = np.array([len(one) for one in found], np.int64)
    if rows is not None:
        tensors["rows"] = np.array(rows, np.int64)
    save_file(tensors, path)


def read_outputs(path: Path) -> list[np.ndarray]:
    """The outputs in row order, float32 [C] or [W, C] each; raises BadInput where the file is broken."""
    try:
        tensors = load_file(path)
        logits, lengths = tensors["logits"], tensors.get("lengths")
    except (SafetensorError, OSError, KeyError) as error:
        raise _broken(path, str(error)) from None
    if lengths is None:
        return list(logits)
    if (lengths < 0).any() or lengths.sum() != len(logits):
        raise _broken(path, "its lengths do not add up")
    return np.split(logits, lengths.cumsum()[:-1])


def read_rows(path: Path) -> list[int] | None:
    """Rows of the split that the outputs in this file belong to; None where they are all of it."""
    try:
        with safe_open(path, "numpy") as file:
            return [int(row) for row in file.get_tensor("rows")] if "rows" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _broken(path, str(error)) from None


def _broken(path: Path, what: str) -> BadInput:
    return BadInput(f"the outputs cannot be used: {what}", where=str(path), todo="Delete that step's folder.")
