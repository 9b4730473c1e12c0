"""The export stage: one Program through one target, into a folder that an app can take as it is.

Beside the model lie the tokenizer, the labels and the golden examples, byte for byte those of the Program.
The stage opens nothing: whether the file runs is for verify to say, in another process.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgekd import registry
from edgekd.artifact import Facts, Inputs
from edgekd.errors import BadInput
from edgekd.recipe import Recipe

NOT_SHIPPED = frozenset({"program.pt2", "reference.safetensors"})  # what only edgekd itself can use


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``model<suffix>`` and the files beside it to ``out``; returns the target's facts and names.

    ``inputs.variant`` holds target and scheme, ``inputs["quantize"]`` is the Program. Raises BadInput when
    ``export.max_length`` (default: ``data.max_length``) is beyond what the Program takes; images have no length.
    """
    name, scheme = inputs.variant["target"], inputs.variant["scheme"]
    program = inputs["quantize"]
    max_length, limit = recipe.export.max_length or recipe.data.max_length, program.facts["max_length"]
    if limit is not None and max_length > limit:
        raise BadInput(
            f"{max_length} tokens are more than the {limit} the student was made for",
            where="export.max_length",
            todo=f"Lower it to {limit}, or raise data.max_length.",
        )
    target: Any = registry.load("targets", name)
    facts: Facts = target.export(program.path, out, max_length=max_length)
    for file in sorted(set(program.files) - NOT_SHIPPED):
        shutil.copyfile(program.file(file), out / file)
    return {"target": name, "scheme": scheme, **facts}
