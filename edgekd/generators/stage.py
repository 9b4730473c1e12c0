"""The export stage of students that write text: one generative Program through one generator, its numbers read back.

Beside the artefact lie the golden texts and the tokenizer's files, byte for byte those of the Program. Every integer
and every scale of the Program is looked for in the file by the generator's own reader, and compared bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import registry
from edgekd.artifact import Facts, Inputs
from edgekd.errors import BadInput
from edgekd.generators import _contract
from edgekd.recipe import Recipe

SHIPPED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write the artefact and the files beside it to ``out``; returns the generator's facts and names.

    ``inputs.variant`` holds target and scheme, ``inputs["quantize"]`` is the Program. Raises BadInput when
    ``export.max_length`` (default: ``data.max_length``) is beyond what the Program takes.
    """
    name, scheme = inputs.variant["target"], inputs.variant["scheme"]
    program = inputs["quantize"]
    max_length, limit = recipe.export.max_length or recipe.data.max_length, program.facts["max_length"]
    if max_length > limit:
        raise BadInput(
            f"{max_length} tokens are more than the {limit} the student was made for",
            where="export.max_length",
            todo=f"Lower it to {limit}, or raise data.max_length.",
        )
    writer: Any = registry.load("generators", name)
    writer.check(_contract.read_config(program.path))
    facts: Facts = writer.export(program.path, out, max_length=max_length)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.copyfile(program.path / "golden.json", out / "golden.json")
    for file in SHIPPED:
        if (program.path / _contract.MODEL / file).is_file() and not (out / file).exists():
            shutil.copyfile(program.path / _contract.MODEL / file, out / file)
    faithful = compared(_contract.read_numbers(program.path), writer.numbers(out))
    return {"target": name, "scheme": scheme, "size_bytes": size, **facts, "faithful": faithful}


def compared(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Facts:
    """``numbers`` is how many integers and scales were looked for, ``arrays`` how many arrays they lie in, and
    ``missing`` names the arrays that the file does not hold bit for bit."""
    missing, numbers = [], 0
    for name, arrays in wanted.items():
        numbers += sum(array.size for array in arrays)
        held = found.get(name, (None, None))
        for part, one, other in zip(("weight", "scale"), arrays, held, strict=True):
            if other is None or other.dtype != one.dtype or not np.array_equal(one, other):
                missing.append(f"{name}.{part}")
    return {"numbers": numbers, "arrays": 2 * len(wanted), "missing": missing}
