"""Tasks whose student becomes several artefacts: each part has inputs, rows and a model of its own.

Such a task defines ``PARTS`` (part -> its ``INPUTS``), ``part_of(row)`` and ``file_of(name)`` (the part that a file of
the processors is for). Teacher and student are one model and know the whole task; from the quantize stage on, a step is
of one part, and sees the task as that part does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput
from edgekd.recipe import Recipe, Student
from edgekd.tasks._contract import Encoded, Example

ONE_WIDTH = ("hidden_size", "heads", "intermediate_size", "embedding_size", "prune")


def names(task: Any) -> tuple[str, ...]:
    """The parts of a task in its order; none of most."""
    return tuple(getattr(task, "PARTS", ()))


def check(recipe: Recipe, task: Any) -> None:
    """Refuse what a student of several artefacts cannot have; raises BadInput."""
    if not names(task):
        return
    check_shape(recipe.distill.student)
    if recipe.tune.against == "latency":
        raise BadInput(
            "the latency of several artefacts is no one number", where="tune.against", todo="Set it to size."
        )
    if recipe.bench.verify == "test":
        raise BadInput(
            f"bench.verify is test, and the metric of {recipe.task} is one of all its artefacts together",
            where="recipe",
            todo="Set it to golden: a device then proves each artefact's embeddings.",
        )


def check_shape(shape: Student) -> None:
    """Refuse a width: one number cannot name those of several parts."""
    for name in ONE_WIDTH:
        if getattr(shape, name) not in (None, "none"):
            raise BadInput(
                f"distill.student.{name} cannot be set for two towers, each of which has a width of its own",
                where="recipe",
                todo="Set layers, or distill.student.model to a narrower model.",
            )


class Part:
    """A task as one of its parts sees it: the names of the contract, and what it does not change of the whole task.

    Its outputs are vectors whose partners lie in another part, so they are compared among themselves
    (``SOFT = "contrastive"``); the task's own metrics need the outputs of all parts, see ``joined``.
    """

    GROUP = 1
    SOFT = "contrastive"

    def __init__(self, task: Any, name: str) -> None:
        self.whole, self.name, self.INPUTS = task, name, task.PARTS[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def processor(self, folder: Path) -> Any:
        """The part's own processor; raises BadInput where the folder has none."""
        found = self.whole.processor(folder)
        if self.name not in found:
            raise BadInput(f"has no processor of the part '{self.name}'", where=str(folder))
        return found[self.name]

    def encode(self, processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
        """As the whole task encodes them, by the part's processor."""
        found: list[Encoded] = self.whole.encode({self.name: processor}, examples, max_length)
        return found


def of(task: Any, variant: Mapping[str, str]) -> Any:
    """The task as the step of this variant sees it."""
    return Part(task, variant["part"]) if "part" in variant else task


def places(task: Any, rows: Sequence[Example]) -> list[int]:
    """Which of these rows are the part's, ascending; all of them for a whole task."""
    if not isinstance(task, Part):
        return list(range(len(rows)))
    return [place for place, row in enumerate(rows) if task.part_of(row) == task.name]


def mine(task: Any, rows: Sequence[Example]) -> list[Example]:
    """The part's rows."""
    return [rows[place] for place in places(task, rows)]


def has(task: Any, file: str) -> bool:
    """Whether a file of the student's tokenizer or image processor is the part's; a whole task has all."""
    return not isinstance(task, Part) or task.file_of(file) == task.name


def joined(places: Sequence[int], outputs: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """``others`` with the outputs of these places put in: what the whole task's metrics are computed from."""
    found = list(others)
    for place, output in zip(places, outputs, strict=True):
        found[place] = output
    return found
