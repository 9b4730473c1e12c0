"""From the facts of a run to one document, ``report.json``: a pure function, edited by nobody.

Everything that a report shows is in the document, so that HTML, Markdown and tables are only ways to print
it, and a program can read the same numbers. It judges nothing (the gate did) and measures nothing. What was
not measured is null and said so; it is never a zero. The format is ``report.schema.json``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.measurement import FLAGS

SCHEMA = "edgekd/report/1"
SCHEMA_VERSION = 1
OUTCOMES = {"pass": "passes", "fail": "fails", "failed": "did not come out"}
Z95 = 1.959963984540054  # 97.5th percentile of the normal distribution

Facts = Mapping[str, Any]
Document = dict[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """All that a report is made from: plain, JSON-able facts of steps, by name.

    ``artifacts`` are ``(name, target, scheme)`` in the order of the recipe; ``exports``, ``verifications``
    and ``verdicts`` go by that name ("onnx-w8a8"), and lack those that did not come out.
    ``discordant`` counts the test rows that only the student, and only the baseline, answers rightly: with it
    the interval of the gain is paired, and so narrower. ``agreement`` has, by scheme, what ``agreement.pairs`` gives.
    """

    name: str
    created: str  # ISO 8601, UTC
    version: str  # of edgekd
    recipe: Facts
    environment: Facts
    data: Facts
    teach: Facts
    student: Facts
    baseline: Facts | None
    quantize: Mapping[str, Facts]
    artifacts: Sequence[tuple[str, str, str]]
    exports: Mapping[str, Facts]
    verifications: Mapping[str, Facts]
    verdicts: Mapping[str, Facts]
    bench: Facts | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    headline: str = "accuracy"
    discordant: tuple[int, int] | None = None
    agreement: Mapping[str, Sequence[Facts]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)  # artefacts that a target cannot carry, and why


def document(run: RunFacts) -> Document:
    """The report as a JSON-able dictionary; see ``report.schema.json``."""
    rows = run.data.get("rows", {}).get("test")
    summaries = list(run.bench["summaries"]) if run.bench else []
    artifacts = [_artifact(run, *names, summaries) for names in run.artifacts]
    passed = [entry for entry in artifacts if entry["verdict"] == "pass"]
    reasons = [
        f"{entry['name']} {OUTCOMES[entry['verdict']]}: {'; '.join(entry['reasons'])}"
        for entry in artifacts
        if entry["verdict"] != "pass"
    ]
    told = {f"{stage}-{entry['name']}" for entry in artifacts for stage in ("export", "verify")}
    reasons += [f"{step}: {line}" for step, line in run.failures.items() if step not in told]
    teacher = run.teach["teacher"]
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "name": run.name,
        "title": (run.recipe.get("report") or {}).get("title") or run.name,
        "created": run.created,
        "edgekd": run.version,
        "headline": run.headline,
        "verdict": "pass" if artifacts and not reasons else "fail",
        "summary": f"{len(passed)} of {len(artifacts)} artefacts pass.",
        "reasons": reasons,
        "teacher": {
            **_model(run.teach["metrics"]["test"], rows, teacher["parameters"], teacher.get("size_bytes")),
            "name": teacher["name"],
            "members": [dict(member) for member in teacher.get("members") or []],
            "architecture": teacher.get("architecture"),
            "latency": headline_row(summaries, "teacher", "fp32"),
        },
        "student": _distilled(run.student, rows, headline_row(summaries, "student", "fp32")),
        "baseline": _distilled(run.baseline, rows, None) if run.baseline else None,
        "gain": _gain(run, rows),
        "retention": retention(run.student, run.baseline),
        "on_policy": on_policy(run.student),
        "artifacts": artifacts,
        "refused": dict(run.refused),
        "quantization": {
            scheme: {
                key: facts.get(key) for key in ("method", "chosen_step", "trace", "metrics", "calibration", "mixed")
            }
            | {"kinds": dict(Counter(layer["kind"] for layer in facts.get("layers", [])))}
            for scheme, facts in run.quantize.items()
        },
        "agreement": {scheme: [dict(pair) for pair in pairs] for scheme, pairs in run.agreement.items()},
        "measurements": dict(run.bench) if run.bench else None,
        "curves": {
            kind: curves(facts["history"], run.headline)
            for kind, facts in (("student", run.student), ("baseline", run.baseline))
            if facts
        },
        "failures": dict(run.failures),
        "data": dict(run.data),
        "environment": dict(run.environment),
        "recipe": dict(run.recipe),
    }


def _model(metrics: Facts, rows: int | None, parameters: int | None, size_bytes: int | None) -> Document:
    return {"metrics": with_interval(metrics, rows), "parameters": parameters, "size_bytes": size_bytes}


def _distilled(facts: Facts, rows: int | None, latency: Facts | None) -> Document:
    parameters = facts["parameters"]
    return {
        **_model(facts["metrics"]["test"], rows, parameters, 4 * parameters),  # its float32 weights
        "shape": facts.get("shape"),
        "terms": [dict(term) for term in facts.get("terms") or []],
        "rows": dict(facts.get("rows") or {}),
        "vocabulary": facts.get("vocabulary"),
        "tokenization": facts.get("tokenization"),
        "steps": facts.get("steps"),
        "seconds": facts.get("seconds"),
        "latency": latency,
    }


def with_interval(metrics: Facts, rows: int | None) -> Document:
    """The metrics and, where there is an accuracy, ``accuracy_ci``: its Wilson 95 % interval."""
    if not rows or "accuracy" not in metrics:
        return dict(metrics)
    return {**metrics, "accuracy_ci": list(wilson(metrics["accuracy"], rows))}


def wilson(share: float, rows: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); unlike the textbook one it is sane near 0 and 1."""
    centre = (share + Z95**2 / (2 * rows)) / (1 + Z95**2 / rows)
    half = Z95 / (1 + Z95**2 / rows) * math.sqrt(share * (1 - share) / rows + Z95**2 / (4 * rows**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(
    student: float, baseline: float, rows: int, discordant: tuple[int, int] | None
) -> tuple[float, float, str]:
    """95 % normal-approximation interval of the difference of two accuracies on the same rows; its method.

    With the discordant counts the variance is that of paired proportions (McNemar's setting); without them
    the two are taken as independent, which is wider than needed when both err on the same rows.
    """
    difference = student - baseline
    if discordant is not None:
        better, worse = (count / rows for count in discordant)
        variance, method = (better + worse - (better - worse) ** 2) / rows, "paired normal approximation"
    else:
        variance = (student * (1 - student) + baseline * (1 - baseline)) / rows
        method = "unpaired normal approximation (wider than a paired one)"
    half = Z95 * math.sqrt(variance)
    return difference - half, difference + half, method


def _gain(run: RunFacts, rows: int | None) -> Document | None:
    """What the teacher added: student minus the same student trained without it."""
    if run.baseline is None or not rows:
        return None
    student, baseline = (facts["metrics"]["test"][run.headline] for facts in (run.student, run.baseline))
    found: Document = {
        "metric": run.headline,
        "value": student - baseline,
        "samples": rows,
        "ci": None,
        "method": None,
    }
    if run.headline == "accuracy":
        low, high, method = difference_interval(student, baseline, rows, run.discordant)
        found |= {"ci": [low, high], "method": method}
    return found


def retention(student: Facts, baseline: Facts | None) -> list[Document]:
    """What the student kept, by data set: metrics before training and after it, and after the baseline's."""
    without = {row["data"]: row["after"] for row in (baseline or {}).get("retention") or []}
    return [{**row, "baseline": without.get(row["data"])} for row in student.get("retention") or []]


def on_policy(student: Facts) -> Document | None:
    """The phase in which the student wrote and the teacher scored: before it and after it, and which was kept."""
    told = student.get("on_policy")
    return {name: value for name, value in told.items() if name != "history"} if told else None


def _artifact(run: RunFacts, name: str, target: str, scheme: str, summaries: Sequence[Facts]) -> Document:
    export, verify = run.exports.get(name), run.verifications.get(name)
    verdict = run.verdicts.get(name, {"verdict": "failed", "checks": [], "reasons": ["not judged"]})
    mine = [row for row in summaries if (row["target"], row["scheme"]) == (target, scheme)]
    comparisons = run.bench["comparisons"] if run.bench else []
    latencies = [_latency(row, comparisons) for row in mine]
    best = headline_row(summaries, target, scheme)
    chosen = _latency(best, comparisons) if best else None
    unmeasured = None if chosen else "bench was not run" if export else "there is no file"
    lost = run.failures.get(f"export-{name}") or run.failures.get(f"verify-{name}")
    return {
        "name": name,
        "target": target,
        "scheme": scheme,
        "verdict": verdict["verdict"],
        "reasons": list(verdict["reasons"]),
        "checks": [dict(check) for check in verdict["checks"]],
        "path": f"artifacts/{name}/{export['file']}" if export else None,
        "size_bytes": export["size_bytes"] if export else None,
        "fixed_length": export.get("fixed_length") if export else None,
        "lengths": (export.get("lengths") or None) if export else None,
        "padding": export.get("padding") if export else None,
        "samples": {"verified": verify["samples"], "of": verify["of"]} if verify else None,
        "metrics": with_interval(verify["metrics"], verify["samples"]) if verify else None,
        "student_metrics": dict(verify["student_metrics"]) if verify else None,
        "teacher_metrics": dict(verify["teacher_metrics"]) if verify else None,
        "parity": dict(verify["parity"]) if verify else None,
        "agreement": dict(verify["agreement"]) if verify else None,
        "golden": dict(verify["golden"]) if verify else None,
        "faithful": dict(verify["faithful"]) if verify and "faithful" in verify else None,
        "runtime": dict(verify["runtime"]) if verify else None,
        "latency": chosen,
        "latencies": latencies,
        "memory": {"peak_mb": chosen["peak_mb"]} if chosen else None,
        "load": {"load_ms": chosen["load_ms"], "first_ms": chosen["first_ms"]} if chosen else None,
        "not_measured": next((row["error"] for row in mine if row["error"]), unmeasured),
        "error": lost,
    }


def _latency(row: Facts, comparisons: Sequence[Facts]) -> Document:
    """A bench summary, with its relation to the float artefact measured under the same conditions."""
    key = ("target", "scheme", "device", "threads", "tokens")
    found = next((one for one in comparisons if all(one[k] == row[k] for k in key)), None)
    relation = {k: found[k] for k in ("verdict", "ratio", "why")} if found else None
    return {k: v for k, v in row.items() if k not in ("target", "scheme", "versions")} | {"relation_to_float": relation}


def headline_row(summaries: Sequence[Facts], target: str, scheme: str) -> Document | None:
    """The one measurement that tables and plots show: first device, fewest threads, median text."""
    good = [
        row
        for row in summaries
        if (row["target"], row["scheme"]) == (target, scheme) and row["error"] is None and row["p50_ms"] is not None
    ]
    if not good:
        return None
    device = good[0]["device"]
    return dict(min((r for r in good if r["device"] == device), key=lambda r: (r["threads"], r["tokens"])))


def input_length(row: Facts) -> str:
    """What a measurement was fed, in words: ``14 tokens``, or ``one image``."""
    return "one image" if row.get("length") == "image" else f"{row['tokens']} tokens"


def curves(history: Sequence[Facts], headline: str) -> dict[str, list[list[float]]]:
    """``{"loss": [[step, value], ..], "validation": [[step, value], ..]}`` from a trainer's log."""
    found: dict[str, list[list[float]]] = {"loss": [], "validation": []}
    for entry in history:
        value = (entry.get("validation") or {}).get(headline, entry.get(f"eval_{headline}"))
        if value is not None:
            found["validation"].append([entry["step"], value])
        if "loss" in entry:
            found["loss"].append([entry["step"], entry["loss"]])
    return found


def bench_rows(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of the bench stage's facts."""
    columns = [
        "what",
        "device",
        "threads",
        "tokens",
        "p50 ms",
        "95 % interval",
        "p90",
        "p99",
        "load ms",
        "peak MB",
        "note",
    ]
    words = {
        (row["target"], row["scheme"], row["device"], row["threads"], row["tokens"]): row
        for row in facts["comparisons"]
    }
    rows = []
    for row in facts["summaries"]:
        name = row["target"] if row["target"] in ("teacher", "student") else f"{row['target']}-{row['scheme']}"
        where = [name, row["device"], str(row["threads"]), "image" if row["length"] == "image" else str(row["tokens"])]
        if row["error"]:
            rows.append([*where, *["-"] * 6, row["error"]])
            continue
        versus = words.get((row["target"], row["scheme"], row["device"], row["threads"], row["tokens"]))
        notes = [f"{versus['verdict']} ({versus['ratio']:.2f} x fp32)"] if versus else []
        rows.append(
            [
                *where,
                number(row["p50_ms"]),
                " to ".join(number(bound) for bound in row["p50_ci_ms"]),
                number(row["p90_ms"]),
                number(row["p99_ms"]),
                number(row["load_ms"]),
                number(row["peak_mb"]),
                "; ".join([*notes, *(FLAGS.get(flag, flag) for flag in row["flags"])]),
            ]
        )
    return columns, rows


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, never in powers of ten; a dash for what was not measured."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("report.schema.json").read_text(encoding="utf-8"))
    return found
