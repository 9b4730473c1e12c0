"""An artefact on its own runtime, over the real test rows: what it says, and how far it is from where it came.

Every number here comes from the exported file, opened by the runtime it was made for, fed by its own tokenizer
file. Three things are compared on the same rows: the Program (did the export keep the numbers?), the float
student (what did quantization cost?) and the teacher (what did everything cost?). This stage measures; the
verdict is ``gate.py``'s. Where the host can only evaluate the artefact slowly, an evenly spread subset of rows
is taken, and the facts say so. Refuses logits that are not finite: such an artefact has no metric.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from edgekd import registry
from edgekd.artifact import Facts, Inputs, read_json
from edgekd.data.stage import read_split
from edgekd.errors import BadInput, StepFailed
from edgekd.teach.cache import read_logits

LOGITS = "logits.safetensors"


def run(recipe: Any, inputs: Inputs, out: Path) -> Facts:
    """Write ``logits.safetensors`` (``logits`` [n, C] float32, ``rows`` [n] int64) and return the facts.

    ``inputs.variant`` names target and scheme; parents: export, quantize, distill, teach, data. Raises StepFailed
    for logits that are not finite or not of the task's shape.
    """
    began = time.monotonic()
    target, task = registry.load("targets", inputs.variant["target"]), registry.load("tasks", recipe.task)
    test = read_split(inputs["data"].path, "test")
    rows = spread(len(test), _limit(recipe.verify, target.slow))
    examples = [test[row] for row in rows]
    compared = _compared(inputs, rows)

    session = target.open_session(inputs["export"].path)
    try:
        max_length = min(recipe.data.max_length, inputs["export"].facts["max_length"])
        encoded = task.encode(_tokenizer(inputs["export"].file("tokenizer.json")), examples, max_length)
        classes = compared["program"].shape[1]
        logits_NC = np.empty((len(rows), classes), np.float32)
        for done, (row, one) in enumerate(zip(rows, encoded, strict=True)):
            logits_NC[done] = _infer(session, one, classes, f"test row {row + 1}")
            inputs.progress(done + 1, len(rows), "samples")
        golden = _golden(session, read_json(inputs["quantize"].file("golden.json")))
        observed = session.observed
    finally:
        session.close()
    save_file({"logits": logits_NC, "rows": np.array(rows, np.int64)}, out / LOGITS)

    golden["bound"] = target.golden_bound(inputs.variant["scheme"], golden["logit_range"])
    golden["passed"] = golden["max_abs_delta"] <= golden["bound"]
    teacher_NC = compared["teacher"]
    return {
        **inputs.variant,
        "samples": len(rows),
        "of": len(test),
        "rows": "every row" if len(rows) == len(test) else f"{len(rows)} of {len(test)} rows, evenly spread",
        "metrics": task.metrics(logits_NC, examples, teacher_NC),
        "program_metrics": task.metrics(compared["program"], examples, teacher_NC),
        "student_metrics": task.metrics(compared["student"], examples, teacher_NC),
        "teacher_metrics": task.metrics(teacher_NC, examples),
        "parity": parity(logits_NC, compared["program"]),
        "golden": golden,
        "agreement": {name: _agreement(logits_NC, other_NC) for name, other_NC in compared.items()},
        "runtime": observed,
        "seconds": round(time.monotonic() - began, 3),
    }


def spread(total: int, limit: int | None) -> list[int]:
    """``limit`` of ``total`` row numbers at equal distances, ascending; all of them where there are no more."""
    if limit is None or limit >= total:
        return list(range(total))
    return [index * total // limit for index in range(limit)]


def parity(logits_NC: np.ndarray, program_NC: np.ndarray) -> Facts:
    """How far the artefact is from its Program on the same rows.

    ``identical`` is the share of rows whose logits are equal bit for bit. For the rows with another argmax,
    ``largest_margin`` is the Program's largest lead of its first over its second class among them: small beside
    ``median_margin`` (of all rows) means that near-ties fell the other way, large means a broken artefact.
    """
    delta_NC = np.abs(logits_NC.astype(np.float64) - program_NC)
    top_N2 = np.sort(program_NC, axis=-1)[:, -2:]
    margin_N = top_N2[:, 1] - top_N2[:, 0] if program_NC.shape[1] > 1 else np.zeros(len(program_NC))
    other_N = logits_NC.argmax(-1) != program_NC.argmax(-1)
    return {
        "max_abs_delta": float(delta_NC.max()),
        "mean_abs_delta": float(delta_NC.mean()),
        "argmax_agreement": float(1 - other_N.mean()),
        "identical": float((logits_NC == program_NC).all(-1).mean()),
        "disagreements": int(other_N.sum()),
        "largest_margin": float(margin_N[other_N].max()) if other_N.any() else 0.0,
        "median_margin": float(np.median(margin_N)),
    }


def _limit(verify: Any, slow: bool) -> int | None:
    limits = [verify.samples, verify.slow_samples if slow else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _compared(inputs: Inputs, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Logits [n, C] of Program, teacher and float student on these rows of the test split."""
    found = {
        "program": load_file(inputs["quantize"].file("reference.safetensors"))["logits"],
        "teacher": read_logits(inputs["teach"], "test").numpy(),
        "student": load_file(inputs["distill"].file("test_logits.safetensors"))["logits"],
    }
    sizes = {name: len(logits_NC) for name, logits_NC in found.items()}
    if len(set(sizes.values())) != 1 or max(rows) >= min(sizes.values()):
        raise BadInput(f"logits of the test rows do not pair up ({sizes})", where="verify", todo="Run with --force.")
    return {name: logits_NC[list(rows)] for name, logits_NC in found.items()}


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise BadInput(f"the artefact's tokenizer cannot be read ({error})", where=str(file)) from None


def _infer(session: Any, encoded: Mapping[str, Sequence[int]], classes: int, where: str) -> np.ndarray:
    """Logits [C] of one text; raises StepFailed where they are not finite or of another shape."""
    logits_1C = session.run({name: np.array([ids], np.int64) for name, ids in encoded.items()})
    if logits_1C.shape != (1, classes):
        raise StepFailed(f"logits have shape {logits_1C.shape}, expected (1, {classes})", where=where)
    if not np.isfinite(logits_1C).all():
        raise StepFailed(
            "the artefact's logits are not finite", where=where, todo="The export or the runtime is broken."
        )
    logits_C: np.ndarray = logits_1C[0]
    return logits_C


def _golden(session: Any, golden: Mapping[str, Any]) -> Facts:
    """The Program's golden inputs, run by the artefact: largest |delta| and the range of the golden logits."""
    expected_GC = np.array(golden["outputs"]["logits"], np.float32)
    columns = golden["inputs"]
    largest = 0.0
    for index, expected_C in enumerate(expected_GC):
        one = {name: values[index] for name, values in columns.items()}
        logits_C = _infer(session, one, len(expected_C), f"golden example {index + 1}")
        largest = max(largest, float(np.abs(logits_C - expected_C).max()))
    return {"examples": len(expected_GC), "max_abs_delta": largest, "logit_range": float(np.ptp(expected_GC))}


def _agreement(left_NC: np.ndarray, right_NC: np.ndarray) -> float:
    return float((left_NC.argmax(-1) == right_NC.argmax(-1)).mean())
