"""An artefact on its own runtime, over the real test rows: what it says, and how far it is from where it came.

Every number here comes from the exported file, opened by the runtime it was made for, fed by its own tokenizer (or
image processor) files. Three things are compared on the same rows: the Program (did the export keep the numbers?),
the float student (what did quantization cost?) and the teacher (what did everything cost?). Beside them stands
whether the artefact is faithful in itself (``faithful.py``). This stage measures; the verdict is ``gate.py``'s. Where
the host can only evaluate the artefact slowly, an evenly spread subset of rows is taken, and the facts say so; rows
that are scored together stay together. Refuses logits that are not finite: such an artefact has no metric.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import registry
from edgekd.artifact import Artifact, Facts, Inputs, read_json
from edgekd.data.stage import read_split
from edgekd.errors import BadInput, StepFailed
from edgekd.outputs import read_outputs, read_rows, save_outputs
from edgekd.targets._contract import load_program
from edgekd.tasks import _parts
from edgekd.teach.cache import read_logits
from edgekd.verify.faithful import accelerated, faithful, integer_layers, invariance, judged, stored_size

OUTPUTS = "logits.safetensors"
SLOW_GOLDEN = 2  # golden examples that a slow target runs again, padded
AT_ONCE = 32  # rows that are encoded together: the images of a whole test split may not fit into memory


def run(recipe: Any, inputs: Inputs, out: Path) -> Facts:
    """Write ``logits.safetensors`` (see ``edgekd.outputs``; with ``rows``) and return the facts.

    ``inputs.variant`` names target and scheme; parents: export, quantize, distill, teach, data. Raises StepFailed
    for logits that are not finite or not of the task's shape.
    """
    began = time.monotonic()
    whole = registry.load("tasks", recipe.task)
    target, task = registry.load("targets", inputs.variant["target"]), _parts.of(whole, inputs.variant)
    test = read_split(inputs["data"].path, "test")
    asked = subset(test, task.group_text, row_limit(recipe.verify, target.slow))
    examples = [test[row] for row in asked]
    places = _parts.places(task, examples)  # of the rows that this artefact answers among those that are scored
    rows = [asked[place] for place in places]
    scored = _compared(inputs, asked)
    compared = {name: [outputs[place] for place in places] for name, outputs in scored.items()}
    golden_file = read_json(inputs["quantize"].file("golden.json"))

    session = target.open_session(inputs["export"].path)
    try:
        model = _Model(session, golden_file["signature"], inputs["export"].facts.get("max_length"))
        outputs = []
        mine = [test[row] for row in rows]
        for row, encoded in zip(rows, _encoded(recipe, task, inputs["export"], mine), strict=True):
            outputs.append(task.take(model.logits(encoded, f"test row {row + 1}"), encoded))
            inputs.progress(len(outputs), len(rows), "samples")
        golden, examples_run, answers = _golden(model, golden_file)
        kept = SLOW_GOLDEN if target.slow else len(answers)
        moved = _invariance(model, golden_file, golden, inputs["export"], examples_run[:kept], answers[:kept])
        observed = session.observed
    finally:
        session.close()
    save_outputs(out / OUTPUTS, outputs, rows=rows)

    lengths = inputs["export"].facts.get("lengths", [])
    tokens = [model.length(one) or 0 for one in examples_run]
    if lengths:
        golden["lengths"] = {str(length): sum(count <= length for count in tokens) for length in lengths}
    kinds = {inputs.variant["scheme"], *(layer["kind"] for layer in inputs["quantize"].facts.get("layers", []))}
    golden["bound"] = max(target.golden_bound(kind, golden["logit_range"]) for kind in kinds)
    golden["passed"] = golden["max_abs_delta"] <= golden["bound"]
    program, export = load_program(inputs["quantize"].path), inputs["export"]
    file = export.path / export.facts["file"]
    teacher, student = scored["teacher"], scored["student"]
    joined = _parts.joined(places, outputs, student)
    agreements = {name: agreement(task, outputs, others) for name, others in compared.items()}
    return {
        **inputs.variant,
        "samples": len(rows),
        "of": len(_parts.places(task, test)),
        "rows": "every row" if len(asked) == len(test) else f"{len(asked)} of {len(test)} rows, evenly spread",
        "metrics": whole.metrics(joined, examples, teacher),
        "program_metrics": whole.metrics(scored["program"], examples, teacher),
        "student_metrics": whole.metrics(student, examples, teacher),
        "teacher_metrics": whole.metrics(teacher, examples),
        "parity": parity(task, outputs, compared["program"]),
        "golden": golden,
        "faithful": {
            "numbers": faithful(program, file, lengths=lengths),
            "invariance": judged(moved, golden, integer_layers(program)),
            "kernels": accelerated(program, target, export.path),
            "size": stored_size(program, file, lengths=lengths),
        },
        "agreement": {name: share for name, share in agreements.items() if share is not None},
        "runtime": observed,
        "seconds": round(time.monotonic() - began, 3),
    }


def spread(total: int, limit: int | None) -> list[int]:
    """``limit`` of ``total`` numbers at equal distances, ascending; all of them where there are no more."""
    if limit is None or limit >= total:
        return list(range(total))
    return [index * total // limit for index in range(limit)]


def subset(
    examples: Sequence[Mapping[str, Any]], group: Callable[[Mapping[str, Any]], str], limit: int | None
) -> list[int]:
    """At most ``limit`` row numbers, ascending: whole groups, evenly spread, and never less than one group.

    ``group`` names the group of a row: the windows of one text, or the two sentences of a pair, are scored together
    and so are taken or left together.
    """
    if limit is None or limit >= len(examples):
        return list(range(len(examples)))
    members: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        members.setdefault(group(example), []).append(row)
    groups = list(members.values())
    rows: list[int] = []
    for count in range(max(1, limit * len(groups) // len(examples)), 0, -1):
        rows = [row for index in spread(len(groups), count) for row in groups[index]]
        if len(rows) <= limit:
            break
    return sorted(rows)


def parity(task: Any, outputs: Sequence[np.ndarray], program: Sequence[np.ndarray]) -> Facts:
    """How far the artefact is from its Program on the same rows.

    ``identical`` is the share of rows whose outputs are equal bit for bit. Where outputs are distributions (not
    embeddings), the largest entry is the answer; of the answers that differ, ``largest_margin`` is the Program's
    largest lead of its first over its second choice: small beside ``median_margin`` (of all answers) means that
    near-ties fell the other way, large means a broken artefact.
    """
    outputs, program = _common(task, outputs, program)
    deltas = np.concatenate([np.abs(a.astype(np.float64) - b).ravel() for a, b in zip(outputs, program, strict=True)])
    facts = {
        "max_abs_delta": float(deltas.max(initial=0.0)),
        "mean_abs_delta": float(deltas.mean()) if deltas.size else 0.0,
        "identical": float(np.mean([np.array_equal(a, b) for a, b in zip(outputs, program, strict=True)])),
    }
    if task.SOFT == "contrastive":
        return facts
    found_MK, program_MK = (_stacked(task, some) for some in (outputs, program))
    top_M2 = np.sort(program_MK, axis=-1)[:, -2:]
    margin_M = top_M2[:, -1] - top_M2[:, 0]  # 0 where there is one choice only
    other_M = found_MK.argmax(-1) != program_MK.argmax(-1)
    return facts | {
        "argmax_agreement": float(1 - other_M.mean()),
        "disagreements": int(other_M.sum()),
        "largest_margin": float(margin_M[other_M].max(initial=0.0)),
        "median_margin": float(np.median(margin_M)),
    }


def agreement(task: Any, outputs: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float | None:
    """Mean over the rows of the share of equal answers, in [0, 1]; None where the two cannot be compared."""
    shares_N = task.agree(*_common(task, outputs, others))
    return None if shares_N is None else float(np.mean(shares_N))


class _Model:
    """An opened artefact with the Program's signature: what it is fed, and what must come back."""

    def __init__(self, session: Any, signature: Mapping[str, Any], max_length: int | None) -> None:
        self.session, self.max_length = session, max_length
        self.dtypes = {one["name"]: np.dtype(one["dtype"]) for one in signature["inputs"]}
        self.ranks = {one["name"]: len(one["shape"]) for one in signature["inputs"]}
        (output,) = signature["outputs"]
        self.classes, self.per_token = int(output["shape"][-1]), len(output["shape"]) == 3

    def length(self, encoded: Mapping[str, Any]) -> int | None:
        """Tokens of a row; None where the model takes no sequences."""
        return next((len(encoded[name]) for name, rank in self.ranks.items() if rank == 2), None)

    def logits(self, encoded: Mapping[str, Any], where: str) -> np.ndarray:
        """Logits [C] or [S, C] of one row; raises StepFailed where they are not finite or of another shape."""
        fed = {name: np.asarray(encoded[name], dtype)[None] for name, dtype in self.dtypes.items()}
        found: np.ndarray = self.session.run(fed)
        expected = (1, self.length(encoded), self.classes) if self.per_token else (1, self.classes)
        if found.shape != expected:
            raise StepFailed(f"logits have shape {found.shape}, expected {expected}", where=where)
        if not np.isfinite(found).all():
            raise StepFailed(
                "the artefact's logits are not finite", where=where, todo="The export or the runtime is broken."
            )
        return found[0]


def _golden(model: _Model, golden: Mapping[str, Any]) -> tuple[Facts, list[Mapping[str, Any]], list[np.ndarray]]:
    """The Program's golden inputs, run by the artefact: largest |delta| and the range of the golden logits.

    The examples that were run and the artefact's answers come second and third.
    Examples longer than the artefact's fixed length cannot be run; the shortest always can.
    """
    names = list(golden["inputs"])
    largest, expected = 0.0, []
    run: list[Mapping[str, Any]] = []
    answers: list[np.ndarray] = []
    for index, (logits, *values) in enumerate(
        zip(golden["outputs"]["logits"], *golden["inputs"].values(), strict=True)
    ):
        encoded = dict(zip(names, values, strict=True))
        length = model.length(encoded)
        if length is not None and model.max_length is not None and length > model.max_length:
            continue
        expected.append(np.array(logits, np.float32))
        found = model.logits(encoded, f"golden example {index + 1}")
        largest = max(largest, float(np.abs(found - expected[-1]).max()))
        run.append(encoded)
        answers.append(found)
    if not expected:
        raise BadInput("every golden example is longer than the artefact takes", where="export.max_length")
    low, high = min(one.min() for one in expected), max(one.max() for one in expected)
    return {"examples": len(expected), "max_abs_delta": largest, "logit_range": float(high - low)}, run, answers


def _invariance(
    model: _Model,
    golden_file: Mapping[str, Any],
    golden: Facts,
    export: Artifact,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[np.ndarray],
) -> Facts:
    """Golden examples again, padded and beside a neighbour."""
    return invariance(
        model.session,
        golden_file["signature"]["inputs"],
        rows,
        answers,
        reach=golden["logit_range"],
        length=export.facts["max_length"],
        lengths=export.facts.get("lengths", []),
        batched=export.facts["inputs"][0]["shape"][0] == "batch",
    )


def _encoded(
    recipe: Any, task: Any, export: Artifact, examples: Sequence[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """Model inputs of each example, by the artefact's own files."""
    processor = task.processor(export.path)
    limits = [recipe.data.max_length, export.facts.get("max_length")]
    max_length = min(limit for limit in limits if limit is not None)
    for start in range(0, len(examples), AT_ONCE):
        yield from task.encode(processor, examples[start : start + AT_ONCE], max_length)


def row_limit(verify: Any, slow: bool) -> int | None:
    """How many test rows are asked at most; ``slow``: the host can only evaluate the artefact."""
    limits = [verify.samples, verify.slow_samples if slow else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _compared(inputs: Inputs, rows: Sequence[int]) -> dict[str, list[np.ndarray]]:
    """Outputs of Program, teacher and float student on these rows of the test split.

    Rows that are another part's have the float student's outputs in place of the Program's.
    """
    reference, student = inputs["quantize"].file("reference.safetensors"), inputs["distill"]
    found = {
        "program": read_outputs(reference),
        "teacher": [one.numpy() for one in read_logits(inputs["teach"], "test")],
        "student": read_outputs(student.file("test_logits.safetensors")),
    }
    if (mine := read_rows(reference)) is not None:
        found["program"] = _parts.joined(mine, found["program"], found["student"])
    sizes = {name: len(outputs) for name, outputs in found.items()}
    if len(set(sizes.values())) != 1 or max(rows) >= min(sizes.values()):
        raise BadInput(
            f"outputs of the test rows do not pair up ({sizes})", where="verify", todo="Delete the run's folder."
        )
    return {name: [outputs[row] for row in rows] for name, outputs in found.items()}


def _common(task: Any, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> tuple[list[Any], list[Any]]:
    """Both outputs without the units that one of them does not answer, because it was cut earlier."""
    if task.PER_UNIT:
        kept = [min(len(a), len(b)) for a, b in zip(left, right, strict=True)]
        left, right = ([one[:n] for one, n in zip(some, kept, strict=True)] for some in (left, right))
    return list(left), list(right)


def _stacked(task: Any, outputs: Sequence[np.ndarray]) -> np.ndarray:
    import torch

    stacked: np.ndarray = task.stack([torch.from_numpy(np.ascontiguousarray(one)) for one in outputs]).numpy()
    return stacked
