"""What is measured, and what it is fed: a run's artefacts with its own tokenised texts, or a model file of anybody's.

Inputs are the recipe's real examples as each subject's own tokenizer sees them, never random ids: the length of a text,
and for some runtimes its content, is part of the latency. A bare model file brings no texts; it is fed what the user
gives (``--inputs``) or zeros of the shape that is asked for (``--shape``), and its measurements say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact, Facts, Inputs, read_json
from edgekd.bench import statistics
from edgekd.errors import BadInput
from edgekd.recipe import Recipe
from edgekd.tasks import _parts

ROWS = 8  # different texts per length, cycled
IMAGES = 2  # the same for images, which are all of one size and long in JSON
NEAR = 0.1  # a text counts for a length when its own is at most this share away
RUNTIMES = {".onnx": "onnx", ".tflite": "litert", ".pte": "executorch", ".xml": "openvino"}  # of a bare file

Row = Mapping[str, list[Any]]  # a row as the runner takes it: only the model's inputs, as nested lists


@dataclass(frozen=True)
class Subject:
    """Something that is measured: an artefact, the teacher or the student."""

    target: str  # of an artefact, with its part where it is one; else "teacher", "student" or "file"
    scheme: str
    artifact: str  # digest, or the model's name
    runtime: str
    model: Path | str  # local file or folder, or a hub id
    processor: Path | None  # folder of its tokenizer or image processor; a student's may differ from the teacher's
    job: Mapping[str, Any] = field(default_factory=dict)  # signature, fixed_lengths, max_length, pad_id
    golden: Mapping[str, Any] | None = None
    beside: Sequence[Path] = ()  # files that the runtime finds next to the model, by the model's name
    reference: Path | None = None  # the Program's outputs over the test split
    size_bytes: int | None = None
    part: str = ""  # which of a student's artefacts it is, where that has several

    @property
    def name(self) -> str:
        return f"{self.target}-{self.scheme}"

    def place(self, file: Path) -> str:
        """Where the model, or a file beside it, lies on the device; the suffix is kept, runtimes look at it."""
        return f"models/{self.name}{file.suffix}"


@dataclass(frozen=True)
class Length:
    """Texts of about the same length, or images. ``tokens`` is the length they stand for, 1 for an image."""

    name: str  # "p50" or "max", "image", or "given"
    tokens: int
    rows: Mapping[str, Sequence[Row]]  # the same texts for each subject by its name, as its own tokenizer sees them
    synthetic: bool = False  # zeros, not data


def of_run(recipe: Recipe, inputs: Inputs) -> list[Subject]:
    """The teacher, the student and every export artefact among the parents, in that order.

    The student is timed as its exported Program: whatever its shape, that file needs no code of its own. Where it
    becomes several artefacts, these alone are timed: teacher and student are not one of them.
    """
    data, teacher = inputs["data"], recipe.teacher.model
    pad_id = inputs.parents.get("student", data).facts.get("pad_token_id", 0)
    found = []
    if teacher is not None and recipe.bench.references:
        place = Path(teacher) if Path(teacher).exists() else teacher
        found.append(Subject("teacher", "fp32", Path(teacher).name, "torch", place, data.path / "tokenizer"))
    if "student" in inputs.parents and recipe.bench.references:
        student = inputs["student"]
        job = {"max_length": student.facts.get("max_length")}
        found.append(
            Subject("student", "fp32", student.digest, "torch", student.path / "program.pt2", student.path, job)
        )
    exports = [parent for parent in inputs.parents.values() if "target" in parent.facts and "file" in parent.facts]
    if any("part" in one.facts for one in exports):
        found = []
    return found + [_exported(one, pad_id, inputs.parents) for one in exports]


def _exported(artifact: Artifact, pad_id: int, parents: Mapping[str, Artifact]) -> Subject:
    facts = artifact.facts
    part = [facts["part"]] if "part" in facts else []
    program = parents.get("-".join(("program", *part, facts["scheme"])))
    golden = artifact.path / "golden.json"
    return Subject(
        target="-".join((facts["target"], *part)),
        scheme=facts["scheme"],
        artifact=artifact.digest,
        runtime=facts["target"],
        model=artifact.path / facts["file"],
        processor=artifact.path,
        job={
            "signature": [{"name": one["name"], "dtype": one["dtype"]} for one in facts["inputs"]],
            "fixed_lengths": facts.get("lengths", []),
            "max_length": facts["max_length"],
            "pad_id": pad_id,
        },
        golden=read_json(golden) if golden.is_file() else None,
        beside=[artifact.path / name for name in facts.get("beside", [])],
        reference=program.file("reference.safetensors") if program else None,
        size_bytes=facts.get("size_bytes"),
        part=facts.get("part", ""),
    )


def by_part(task: Any, found: Sequence[Subject]) -> list[tuple[Any, list[Subject]]]:
    """Subjects that take the same inputs, each with the task as they see it."""
    parts: dict[str, list[Subject]] = {}
    for one in found:
        parts.setdefault(one.part, []).append(one)
    return [(_parts.of(task, {"part": part} if part else {}), some) for part, some in parts.items()]


def choose_lengths(recipe: Recipe, task: Any, data: Path, found: Sequence[Subject]) -> list[Length]:
    """The median and the largest length of the test split, each with the texts nearest to it; or two images.

    Lengths are counted by the tokenizer of the artefacts (the teacher's, where there are none).
    """
    examples = _test(task, data)
    limit = _limit(recipe, found)

    def length(name: str, tokens: int, chosen: Sequence[int]) -> Length:
        texts = [examples[index] for index in chosen]
        return Length(name, tokens, {one.name: rows(task, one, texts, limit)[0] for one in found})

    if "input_ids" not in task.INPUTS:
        return [length("image", 1, range(len(examples))[:IMAGES])]
    sizes = [len(row["input_ids"]) for row in rows(task, found[-1], examples, limit)[0]]
    wanted = {"p50": round(statistics.percentile(sizes, 50)), "max": max(sizes)}
    if wanted["p50"] == wanted["max"]:
        del wanted["p50"]
    return [length(name, tokens, _nearest(sizes, tokens)) for name, tokens in wanted.items()]


def test_rows(
    recipe: Recipe, task: Any, data: Path, subject: Subject, found: Sequence[Subject]
) -> tuple[list[Row], list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The whole test split for one subject: rows, what the task noted of them, and the examples."""
    examples = _test(task, data)
    mine, encoded = rows(task, subject, examples, _limit(recipe, found))
    return mine, encoded, examples


def _test(task: Any, data: Path) -> list[Mapping[str, Any]]:
    from edgekd.data.stage import read_split

    examples: list[Mapping[str, Any]] = _parts.mine(task, read_split(data, "test"))
    if not examples:
        raise BadInput("test.jsonl is empty, so there is nothing to time", where=str(data))
    return examples


def _limit(recipe: Recipe, found: Sequence[Subject]) -> int:
    limits = [recipe.data.max_length, *(one.job.get("max_length") for one in found)]
    return min(size for size in limits if size is not None)


def rows(
    task: Any, subject: Subject, examples: Sequence[Mapping[str, Any]], limit: int
) -> tuple[list[Row], list[Mapping[str, Any]]]:
    """The examples as a runner takes them (the model's inputs only, free of numpy), and as the task does."""
    encoded = task.encode(task.processor(subject.processor), examples, limit)
    return [{name: _listed(row[name]) for name in task.INPUTS} for row in encoded], encoded


def _listed(values: Any) -> list[Any]:
    found: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    return found


def _nearest(sizes: Sequence[int], tokens: int) -> list[int]:
    """At most ROWS rows whose length is within NEAR of ``tokens``, the nearest first; at least one."""
    ordered = sorted(range(len(sizes)), key=lambda row: abs(sizes[row] - tokens))
    near = [row for row in ordered[:ROWS] if abs(sizes[row] - tokens) <= NEAR * tokens]
    return near or ordered[:1]


# --- a model file that edgekd did not make ---


def bare(path: Path) -> Subject:
    """A model file as a subject; raises BadInput for a missing file or an unknown kind."""
    from edgekd.artifact import sha256_file

    runtime = RUNTIMES.get(path.suffix)
    if runtime is None:
        raise BadInput(f"'{path.suffix}' is no model file that can be run", where=str(path), todo=_KINDS)
    if not path.is_file():
        raise BadInput("no such model file", where=str(path))
    weights = path.with_suffix(".bin")
    beside = [weights] if runtime == "openvino" and weights.is_file() else []
    size = sum(file.stat().st_size for file in (path, *beside))
    digest = sha256_file(path)
    return Subject(runtime, path.stem, digest, runtime, path, None, beside=beside, size_bytes=size)


_KINDS = f"Known: {', '.join(RUNTIMES)}."


def with_inputs(subject: Subject, described: Sequence[Facts], given: Inputs_ | None, shapes: Sequence[str]) -> Any:
    """The subject with a signature, and its one Length.

    ``described`` is what the runner's phase ``describe`` said of the model's inputs, ``given`` the user's sample rows
    (``read_inputs``), ``shapes`` their ``name=1x32``. Raises BadInput for a dynamic axis without a shape, a shape that
    contradicts the model, and names that it does not have.
    """
    names = [one["name"] for one in described]
    asked = {name: shape for name, shape in map(_shape, shapes)}
    unknown = sorted({*asked, *(given[0] if given else {})} - set(names))
    if unknown:
        raise BadInput(
            f"the model has no input '{unknown[0]}'", where=str(subject.model), todo=f"It has: {', '.join(names)}."
        )
    signature, first = [], given[0] if given else {}
    for one in described:
        shape: list[int] = asked.get(one["name"]) or list(one["shape"])
        if one["name"] in first:
            shape = _dimensions(first[one["name"]])
        _check_shape(one, shape, str(subject.model))
        signature.append({"name": one["name"], "dtype": one["dtype"], "shape": shape})
    if given:
        made: list[Row] = [{name: _flat(row[name]) for name in names} for row in given]
    else:
        made = [{one["name"]: [0] * math.prod(one["shape"]) for one in signature}]
    job = {"signature": signature, "fixed_lengths": [], "max_length": None, "pad_id": 0}
    tokens = max((one["shape"][1] for one in signature if len(one["shape"]) == 2), default=1)
    changed = Subject(**{**vars(subject), "job": job})
    return changed, Length("given", max(1, tokens), {changed.name: made}, synthetic=not given)


Inputs_ = Sequence[Mapping[str, Any]]


def read_inputs(path: Path) -> list[Mapping[str, Any]]:
    """Sample inputs: a JSON list of ``{input: nested lists with the batch dimension}``, or one such object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"the sample inputs cannot be read ({error})", where=str(path)) from None
    samples = value if isinstance(value, list) else [value]
    if not samples or not all(isinstance(one, dict) and one for one in samples):
        raise BadInput("sample inputs are a list of {input name: nested lists}", where=str(path))
    if any(set(one) != set(samples[0]) for one in samples):
        raise BadInput("the samples have different inputs", where=str(path))
    return samples


def _shape(text: str) -> tuple[str, list[int]]:
    name, found, sizes = text.partition("=")
    parts = sizes.replace(",", "x").split("x")
    if not found or not name or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise BadInput(f"'{text}' is no shape", where="--shape", todo="Write it like input_ids=1x32.")
    return name, [int(part) for part in parts]


def _check_shape(one: Facts, shape: Sequence[int], where: str) -> None:
    if any(size < 1 for size in shape):
        sizes = "x".join("?" if size < 1 else str(size) for size in shape)
        raise BadInput(
            f"input '{one['name']}' is {sizes}: some of its axes are dynamic",
            where=where,
            todo=f"Say which size: --shape {one['name']}={sizes.replace('?', '1')}, or give samples with --inputs.",
        )
    own = one["shape"]
    if len(own) != len(shape) or any(mine not in (-1, size) for mine, size in zip(own, shape, strict=True)):
        raise BadInput(f"input '{one['name']}' is {own}, not {list(shape)}", where=where)


def _dimensions(values: Any) -> list[int]:
    sizes = []
    while isinstance(values, list) and values:
        sizes.append(len(values))
        values = values[0]
    return sizes


def _flat(values: Any) -> list[Any]:
    return [one for part in values for one in _flat(part)] if isinstance(values, list) else [values]
