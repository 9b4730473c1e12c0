"""An artefact that writes text, on its own runtime: how likely it finds the test rows, and what it writes.

Each test row is read in one piece and gives the perplexity. Each golden prompt is continued greedily and compared,
token by token, with what the Program wrote: where another token comes, the Program's own lead of its token over the
next says whether that was a tie (a lead of no more than twice the bound of an output) or a difference; the Program's
token goes on, so that every place is judged. A prompt fed token by token must give what it gives in one piece; a
source that an encoder reads must give the same beside longer ones. Some rows are answered, and what was written is
compared with their targets. Where the host has no runtime and can only evaluate the artefact, an evenly spread subset
of rows is taken, as in ``stage.py``. Facts have the shape of those of any other artefact; the verdict is ``gate.py``'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import registry
from edgekd.artifact import Facts, Inputs, read_json
from edgekd.data.stage import read_split
from edgekd.distill import vocabulary
from edgekd.errors import StepFailed
from edgekd.outputs import read_outputs, save_outputs
from edgekd.teach import writing
from edgekd.teach.answers import has_answers
from edgekd.teach.cache import read_logits
from edgekd.verify import faithful
from edgekd.verify.stage import OUTPUTS, row_limit, spread

# Between one piece and many: other kernels multiply a matrix and a vector. A share of the outputs' range.
PIECES = 0.03
OVERHEAD, SHARE = 2_000_000, 1.15  # of a file beside its numbers: graph, tokenizer (its words twice), alignment


def run(recipe: Any, inputs: Inputs, out: Path) -> Facts:
    """Write ``logits.safetensors`` (outputs per token, ``rows``); returns the facts.

    ``inputs.variant`` names target and scheme; parents: export, quantize, distill, teach, data. Raises StepFailed for
    an artefact that cannot be opened, or gives numbers that are not finite.
    """
    began = time.monotonic()
    writer, task = registry.load("generators", inputs.variant["target"]), registry.load("tasks", recipe.task)
    test = read_split(inputs["data"].path, "test")
    rows = spread(len(test), row_limit(recipe.verify, slow=not writer.runs))
    examples = [test[row] for row in rows]
    processor, limit = task.processor(inputs["quantize"].path / "model"), recipe.data.max_length
    encoded = task.encode(processor, examples, limit)
    read = [name for name in task.INPUTS if name.endswith("input_ids")]  # a text; or a source and what is written
    asked = read_json(inputs["quantize"].file("golden.json"))
    scheme = inputs.variant["scheme"]
    session = writer.open_session(inputs["export"].path)
    try:
        outputs = []
        for row, one in zip(rows, encoded, strict=True):
            logits = session.score(*(one[name] for name in read))
            outputs.append(task.take(_finite(logits, f"test row {row + 1}"), one))
            inputs.progress(len(outputs), len(rows), "rows")
        range_ = float(inputs["quantize"].facts["logit_range"])
        bound = writer.golden_bound(scheme, range_)
        golden = {**_golden(session, asked), "logit_range": range_, "bound": bound}
        golden["passed"] = golden["max_abs_delta"] <= bound
        written = greedy(session, asked, tie=2 * bound)
        if hasattr(session, "together"):
            moved = _beside(session, asked, encoded[0]["decoder_input_ids"][0], range_)
        else:
            moved = _pieces(session, asked["prompts"], range_)
        texts = _texts(session, task, processor, test, limit)
        observed = session.observed
    finally:
        session.close()
    save_outputs(out / OUTPUTS, outputs, rows=rows)
    compared = {
        "program": read_outputs(inputs["quantize"].file("reference.safetensors")),
        "student": read_outputs(inputs["distill"].file("test_logits.safetensors")),
    }
    if not has_answers(inputs["teach"].path) and not inputs["distill"].facts.get("own_tokens"):
        compared["teacher"] = [one.numpy() for one in read_logits(inputs["teach"], "test")]
        ids = vocabulary.new_ids(inputs["data"].path / "tokenizer", inputs["quantize"].path / "model")
        if ids is not None:  # a trimmed vocabulary: rows that both cut alike are compared
            compared["teacher"] = [task.renumbered(one, ids) for one in compared["teacher"]]
    compared = {name: [some[row] for row in rows] for name, some in compared.items()}
    told = {name: task.metrics(some, examples) for name, some in compared.items()}
    metrics = task.metrics(outputs, examples, compared.get("teacher")) | texts
    for name, parent in (("student", "distill"), ("teacher", "teach")):  # of the same rows
        if name in told:
            told[name] |= {key: inputs[parent].facts["metrics"]["test"][key] for key in texts}
    likeliest = task.metrics(outputs, examples, compared["program"])["teacher_agreement"]  # the other as a teacher
    export = inputs["export"].facts
    return {
        **inputs.variant,
        "samples": len(rows),
        "of": len(test),
        "rows": "every row" if len(rows) == len(test) else f"{len(rows)} of {len(test)} rows, evenly spread",
        "metrics": metrics,
        "program_metrics": told["program"],
        "student_metrics": told["student"],
        "teacher_metrics": told.get("teacher", {}),
        "parity": parity(outputs, compared["program"]) | {"likeliest": likeliest},
        "golden": golden,
        "written": written,
        "faithful": {
            "numbers": export["faithful"],
            "invariance": moved,
            "kernels": accelerated(writer, inputs["quantize"].facts["layers"], inputs["export"].path),
            "size": stored_size(inputs["quantize"], export["size_bytes"] - export.get("twice_bytes", 0)),
        },
        "agreement": {"program": 1 - written["differ"] / written["tokens"]}
        | ({"teacher": metrics["teacher_agreement"]} if "teacher_agreement" in metrics else {}),
        "runtime": observed,
        "seconds": round(time.monotonic() - began, 3),
    }


def greedy(session: Any, golden: Mapping[str, Any], tie: float) -> Facts:
    """What the artefact writes after each golden prompt, judged at every place while the Program's tokens are fed.

    ``tokens`` places; ``equal``, ``ties`` and ``differ`` of them; ``exact`` prompts without any difference; and the
    largest lead that was overturned.
    """
    counts, exact, overturned = {"equal": 0, "ties": 0, "differ": 0}, 0, 0.0
    for prompt, tokens, margins in zip(golden["prompts"], golden["tokens"], golden["margins"], strict=True):
        session.reset()
        logits_V, clean = session.feed(prompt), True
        for place, (token, margin) in enumerate(zip(tokens, margins, strict=True)):
            if place:
                logits_V = session.feed([tokens[place - 1]])
            if int(np.argmax(logits_V)) == token:
                counts["equal"] += 1
                continue
            clean = False
            counts["ties" if margin <= tie else "differ"] += 1
            overturned = max(overturned, margin)
        exact += clean
    prompts = len(golden["prompts"])
    return {"prompts": prompts, "tokens": sum(counts.values()), **counts, "exact": exact, "largest_lead": overturned}


def parity(outputs: Sequence[np.ndarray], program: Sequence[np.ndarray]) -> Facts:
    """How far the right tokens' log-probabilities are from the Program's, nats; ``identical`` rows are so bitwise."""
    deltas = np.concatenate(
        [np.abs(a[:, 0].astype(np.float64) - b[:, 0]) for a, b in zip(outputs, program, strict=True)]
    )
    return {
        "max_abs_delta": float(deltas.max(initial=0.0)),
        "mean_abs_delta": float(deltas.mean()) if deltas.size else 0.0,
        "identical": float(np.mean([np.array_equal(a, b) for a, b in zip(outputs, program, strict=True)])),
    }


def _golden(session: Any, golden: Mapping[str, Any]) -> Facts:
    """Logits after the prompts whose logits the Program kept."""
    largest = 0.0
    for prompt, logits in zip(golden["prompts"], golden["logits"], strict=False):
        session.reset()
        found = _finite(session.feed(prompt), "a golden prompt")
        wanted = np.asarray(logits, np.float32)
        largest = max(largest, float(np.abs(found[: len(wanted)] - wanted).max()))
    return {"examples": len(golden["logits"]), "max_abs_delta": largest}


def _pieces(session: Any, prompts: Sequence[Sequence[int]], range_: float) -> Facts:
    """Prompts in one piece and token by token: the largest change of an output, as a share of their range."""
    changes = []
    for prompt in prompts[:3]:
        session.reset()
        whole = session.feed(prompt)
        session.reset()
        for token in prompt:
            last = session.feed([token])
        changes.append(float(np.abs(whole - last).max()) / range_)
    return _moved(changes)


def _beside(session: Any, golden: Mapping[str, Any], start: int, range_: float) -> Facts:
    """Sources alone and padded beside longer ones, and what was written in one piece and token by token."""
    prompts = golden["prompts"][:8]
    changes = []
    for prompt, together, tokens in zip(prompts, session.together(prompts), golden["tokens"], strict=False):
        session.reset()
        last = session.feed(prompt)
        changes.append(float(np.abs(together - last).max()) / range_)
        for token in tokens:
            last = session.feed([token])
        whole = session.score(prompt, [start, *tokens])[-1]
        changes.append(float(np.abs(whole - last).max()) / range_)
    return _moved(changes)


def _texts(session: Any, task: Any, processor: Any, test: Sequence[Any], limit: int) -> dict[str, float]:
    """Metrics of the texts that the artefact writes greedily for some test rows; none for a task that judges none."""
    if not hasattr(task, "written"):
        return {}
    rows = [test[row] for row in writing.sample(len(test))]
    ids = [session.write(one["input_ids"], limit) for one in task.encode(processor, rows, limit)]
    found: dict[str, float] = task.written(processor.batch_decode(ids, skip_special_tokens=True), rows)
    return found


def _moved(changes: Sequence[float]) -> Facts:
    largest = max(changes)
    quartile = float(np.quantile(changes, 0.75))
    return {
        "largest": largest,
        "bound": PIECES,
        "quartile": quartile,
        "quartile_bound": PIECES,
        "passed": largest <= PIECES,
    }


def accelerated(writer: Any, layers: Sequence[Facts], artifact: Path) -> Facts:
    """Integer kernels, as ``faithful.kernels_of`` says it: wanted is each product whose activations are int8 too."""
    dynamic = sum(layer["kind"] == "w8a8-dynamic" for layer in layers)
    return faithful.kernels_of(writer, dynamic, artifact)


def stored_size(program: Any, size_bytes: int) -> Facts:
    """Whether an artefact is as small as its bits promise: integers, scales, floats, and what a file needs beside."""
    from safetensors import safe_open

    bits = {one["name"]: one["bits"] for one in program.facts["layers"]}
    expected = 0
    with safe_open(program.path / "model" / "model.safetensors", "np") as held:
        for name in held.keys():  # noqa: SIM118 (it is no dict)
            size = int(np.prod(held.get_slice(name).get_shape(), dtype=np.int64))
            kind = bits.get(name.removesuffix(".weight"), 32)
            expected += size * kind // 8 + (size // 32 * 4 if kind < 16 else 0)
    limit = int(expected * SHARE) + OVERHEAD
    return {"bytes": size_bytes, "expected": expected, "limit": limit, "small": size_bytes <= limit}


def _finite(logits: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise StepFailed("outputs that are not finite", where=where)
    return logits
