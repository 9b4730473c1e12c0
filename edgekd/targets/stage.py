"""The export stage: one Program through one target, into a folder that an app can take as it is.

Beside the model lie the tokenizer, the labels and the golden examples, byte for byte those of the Program.
The stage opens nothing: whether the file runs is for verify to say, in another process.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from edgekd import registry
from edgekd.artifact import Facts, Inputs
from edgekd.data.stage import read_split
from edgekd.errors import BadInput
from edgekd.recipe import Recipe
from edgekd.targets import _buckets
from edgekd.tasks import _parts

COUNTED = 10_000  # training rows that are counted, evenly spread: more would move a share by less than a hundredth
SHOWN = 4  # numbers of lengths whose padding is told
NOT_SHIPPED = frozenset({"program.pt2", "reference.safetensors"})  # what only edgekd itself can use


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``model<suffix>`` and the files beside it to ``out``; returns the target's facts and names.

    ``inputs.variant`` holds target and scheme, ``inputs["quantize"]`` is the Program, ``inputs["data"]`` is there for
    targets of fixed lengths, whose fact ``padding`` says what these lengths cost on the training text. Raises BadInput
    when ``export.max_length`` (default: ``data.max_length``) is beyond what the Program takes; images have no length.
    """
    name, program = inputs.variant["target"], inputs["quantize"]
    max_length, limit = recipe.export.max_length or recipe.data.max_length, program.facts["max_length"]
    if limit is not None and max_length > limit:
        raise BadInput(
            f"{max_length} tokens are more than the {limit} the student was made for",
            where="export.max_length",
            todo=f"Lower it to {limit}, or raise data.max_length.",
        )
    target: Any = registry.load("targets", name)
    shorter: dict[str, Any] = {}
    padding: Facts = {}
    if limit is not None and target.fixed_length:
        texts = _texts(recipe, inputs, max_length)
        lengths = _lengths(recipe.export.buckets, texts, max_length)
        shorter = {"shorter": lengths[:-1]} if lengths[:-1] else {}
        padding = {"padding": _padding(texts, lengths)}
    facts: Facts = target.export(program.path, out, max_length=max_length, **shorter)
    for file in sorted(set(program.files) - NOT_SHIPPED):
        shutil.copyfile(program.file(file), out / file)
    return {**inputs.variant, **facts, **padding}


def _texts(recipe: Recipe, inputs: Inputs, max_length: int) -> Counter[int]:
    """Number of training texts by their tokens, as the Program's own tokenizer cuts them."""
    task = _parts.of(registry.load("tasks", recipe.task), inputs.variant)
    rows = _parts.mine(task, read_split(inputs["data"].path, "train"))
    rows = rows[:: -(-len(rows) // COUNTED)]
    processor = task.processor(inputs["quantize"].path)
    return Counter(len(one["input_ids"]) for one in task.encode(processor, rows, max_length))


def _lengths(buckets: int | list[int], texts: _buckets.Histogram, max_length: int) -> list[int]:
    """The lengths that the recipe names, or as many as it asks for; the last is ``max_length``."""
    if isinstance(buckets, int):
        return _buckets.plan(texts, max_length, buckets)
    return sorted({*buckets, max_length})


def _padding(texts: _buckets.Histogram, lengths: list[int]) -> Facts:
    """Padded tokens for each real one: at these lengths, and by the number of planned ones."""
    planned = {str(count): _buckets.plan(texts, lengths[-1], count) for count in range(1, SHOWN + 1)}
    return {
        "texts": sum(texts.values()),
        "share": round(_buckets.padding(texts, lengths), 4),
        "planned": {
            count: {"lengths": some, "share": round(_buckets.padding(texts, some), 4)}
            for count, some in planned.items()
        },
    }
