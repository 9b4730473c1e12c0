"""Measurements and verdicts in formats that other tools read. Pure functions from facts to text; they measure nothing.

- ``google_benchmark``: JSON as Google Benchmark's ``--benchmark_format=json`` writes it (docs/user_guide.md of
  google/benchmark), which github-action-benchmark reads as ``tool: googlecpp``, and Google Benchmark's compare.py.
- ``csv_text``, ``markdown``: a row per measurement.
- ``junit``: the gate's checks as test cases, in the Jenkins dialect of JUnit XML that CI services show.
- ``measurement_schema``: JSON Schema (draft 2020-12) of a line of ``measurements.jsonl``.
"""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.artifact import Facts
from edgekd.bench import results
from edgekd.errors import BadInput
from edgekd.measurement import FLAGS, SCHEMA, Measurement

COLUMNS = (
    "target",
    "scheme",
    "device",
    "runtime",
    "threads",
    "tokens",
    "length",
    "p50_ms",
    "p50_low_ms",
    "p50_high_ms",
    "p90_ms",
    "p99_ms",
    "min_ms",
    "runs",
    "blocks",
    "load_ms",
    "first_ms",
    "peak_mb",
    "energy_mj",
    "drift",
    "backend",
    "flags",
    "artifact",
    "error",
)
SHOWN = (
    "what",
    "device",
    "threads",
    "length",
    "p50 ms",
    "95 % interval",
    "p90",
    "p99",
    "load ms",
    "first ms",
    "peak MB",
)
# Characters that XML 1.0 cannot hold, however escaped (its section 2.2).
UNPRINTABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def name(one: Measurement) -> str:
    """``onnx-w8a8/local/threads:1/p50``: Google Benchmark's way to name a case and its arguments."""
    length = one.requested.get("length") or f"tokens:{one.tokens}"
    return f"{one.target}-{one.scheme}/{one.device}/threads:{one.threads}/{length}"


def google_benchmark(measurements: Sequence[Measurement], *, version: str = "") -> Facts:
    """``{"context", "benchmarks"}``; times in milliseconds, ``real_time`` the median of block medians.

    ``cpu_time`` is the processor time of an inference (mean over the blocks: the runner does not tell medians of it),
    or the real time where the device does not tell. Quantiles, memory and load are custom counters: plain numbers
    beside the others. A failed measurement is no benchmark, lest a reader plot a time that is none: the context has it,
    under ``failed``. So is an emulated one, whose times mean nothing.
    """
    first: Mapping[str, Any] = next((one.environment for one in measurements if one.environment), {})
    context = {
        "date": first.get("time", ""),
        "host_name": measurements[0].device if measurements else "",
        "executable": "edgekd",
        "num_cpus": first.get("cores") or 0,
        "mhz_per_cpu": 0,  # not known; a reader of the format expects the key
        "cpu_scaling_enabled": first.get("governor") not in (None, "performance"),
        "caches": [],
        "load_avg": list(first.get("load_average_before") or []),
        "library_build_type": "release",
        "json_schema_version": 1,
        "edgekd_version": version,
        "os": first.get("os", ""),
        "cpu": first.get("cpu", ""),
        "failed": {name(one): why for one in measurements if (why := _untimed(one))},
    }
    timed = [one for one in measurements if not _untimed(one)]
    return {"context": context, "benchmarks": [_case(one, number) for number, one in enumerate(timed)]}


def _untimed(one: Measurement) -> str:
    """Why its times say nothing; empty where they do."""
    return one.error or (FLAGS["emulated"] if "emulated" in one.flags else "")


def _case(one: Measurement, number: int) -> Facts:
    row = _row(one)
    counters = {key: row[key] for key in ("p90_ms", "p99_ms", "min_ms", "load_ms", "first_ms", "peak_mb", "energy_mj")}
    told = [text for text in (str(row["backend"] or ""), row["flags"]) if text]
    return {
        "name": name(one),
        "family_index": number,
        "per_family_instance_index": 0,
        "run_name": name(one),
        "run_type": "iteration",
        "repetitions": 1,
        "repetition_index": 0,
        "threads": one.threads,
        "iterations": row["runs"],
        "real_time": row["p50_ms"],
        "cpu_time": _cpu_ms(one) or row["p50_ms"],
        "time_unit": "ms",
        "label": "; ".join(told),
        "tokens": one.tokens,
        **{key: value for key, value in counters.items() if value is not None},
    }


def _cpu_ms(one: Measurement) -> float | None:
    """Processor time of the timed part by its inferences."""
    used = [block.get("cpu_ns") for block in one.blocks]
    known = [value for value in used if isinstance(value, int)]
    runs = len(one.samples_ns())
    return round(sum(known) / runs / 1e6, 5) if known and len(known) == len(used) and runs else None


def _row(one: Measurement) -> dict[str, Any]:
    """A measurement as a flat row: COLUMNS, from the bench's own summary of it."""
    found, samples = results.summarise(one), one.samples_ns() if one.error is None else []
    low, high = found["p50_ci_ms"] or (None, None)
    more = {
        "artifact": one.artifact,
        "runtime": one.runtime,
        "p50_low_ms": low,
        "p50_high_ms": high,
        "min_ms": round(min(samples) / 1e6, 5) if samples else None,
        "blocks": len([block for block in one.latency_ns if block]),
        "flags": " ".join(one.flags),
    }
    return {name: {**found, **more}[name] for name in COLUMNS}


def csv_text(measurements: Sequence[Measurement]) -> str:
    """RFC 4180 with a header; what was not measured is empty. Text that a spreadsheet would run is quoted (``'``)."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for one in measurements:
        writer.writerow({key: _cell(value) for key, value in _row(one).items()})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """None as nothing; a text that starts like a formula (OWASP, "CSV Injection") made harmless."""
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def markdown(measurements: Sequence[Measurement]) -> str:
    """A GitHub-flavoured table, and what its flags mean."""
    lines = [_line(SHOWN), "|---|---|" + "---:|" * (len(SHOWN) - 2)]
    for one in measurements:
        row = _row(one)
        where = [f"{one.target}-{one.scheme}", one.device, str(one.threads), row["length"] or f"{one.tokens} tokens"]
        if one.error is not None:
            lines.append(_line([*where, one.error, *[""] * (len(SHOWN) - 5)]))
            continue
        times = [
            _short(row["p50_ms"]) + (" *" if one.flags else ""),
            f"{_short(row['p50_low_ms'])} to {_short(row['p50_high_ms'])}",
            *(_short(row[key]) for key in ("p90_ms", "p99_ms", "load_ms", "first_ms", "peak_mb")),
        ]
        if "emulated" in one.flags:
            times = ["numerics only, not latency", *[""] * (len(times) - 1)]
        lines.append(_line([*where, *times]))
    flags = list(dict.fromkeys(flag for one in measurements for flag in one.flags))
    notes = [f"\\* {flag}: {FLAGS.get(flag, flag)}" for flag in flags]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def junit(verdicts: Mapping[str, Facts], *, suite: str = "edgekd") -> str:
    """The gate's verdicts (``outcome.verdicts``: by artefact) as JUnit XML.

    A test suite per artefact, a case per check: passed None is skipped (it could not be told), False a failure whose
    text is value, limit and note. An artefact that was never made is one erroneous case.
    """
    root = ElementTree.Element("testsuites", name=_clean(suite))
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for artifact, verdict in verdicts.items():
        cases = [_check(artifact, check) for check in verdict["checks"]]
        if verdict["verdict"] == "failed" or not cases:
            cases.append(_never_made(artifact, verdict))
        kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
        counts = {key: sum(case.find(tag) is not None for case in cases) for key, tag in kinds.items()}
        counts["tests"] = len(cases)
        for key, count in counts.items():
            totals[key] += count
        attributes = {"name": _clean(artifact), "time": "0", **{key: str(counts[key]) for key in totals}}
        element = ElementTree.SubElement(root, "testsuite", attributes)
        element.extend(cases)
    root.attrib.update({key: str(count) for key, count in totals.items()})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _check(artifact: str, check: Mapping[str, Any]) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=_clean(artifact), name=_clean(check["name"]), time="0")
    said = f"{check['name']} is {_number(check['value'])}, wanted {_number(check['limit'])}"
    note = check.get("note") or ""
    if check["passed"] is None:
        ElementTree.SubElement(case, "skipped", message=_clean(note or "cannot be told"))
    elif not check["passed"]:
        failure = ElementTree.SubElement(case, "failure", type="gate", message=_clean(said))
        failure.text = _clean(f"{said} ({note})" if note else said)
    else:
        ElementTree.SubElement(case, "system-out").text = _clean(f"{said} ({note})" if note else said)
    return case


def _never_made(artifact: str, verdict: Facts) -> ElementTree.Element:
    """The case of an artefact without checks."""
    case = ElementTree.Element("testcase", classname=_clean(artifact), name="made", time="0")
    reasons = "; ".join(verdict.get("reasons") or ["it was not judged"])
    if verdict["verdict"] != "pass":
        error = ElementTree.SubElement(case, "error", type=_clean(verdict["verdict"]), message=_clean(reasons))
        error.text = _clean(reasons)
    return case


def _number(value: Any) -> str:
    if value is None:
        return "not known"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _clean(text: Any) -> str:
    """Without what XML cannot hold: control characters and lone surrogates become U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", str(text))


TEXTS: Mapping[str, Callable[[Sequence[Measurement]], str]] = {
    "google-benchmark": lambda measurements: json.dumps(google_benchmark(measurements), indent=2) + "\n",
    "csv": csv_text,
    "markdown": markdown,
}


def asked(wanted: Sequence[str], known: Collection[str]) -> list[tuple[str, Path]]:
    """``format=file`` of a command line, checked before anything runs; raises BadInput."""
    found = []
    for one in wanted:
        kind, equals, file = one.partition("=")
        if not equals or not file or kind not in known:
            todo = f"Write it like {next(iter(known))}=FILE. Known: {', '.join(known)}."
            raise BadInput(f"'{one}' is no format and file", where="--write", todo=todo)
        found.append((kind, Path(file)))
    return found


def measurement_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one line of ``measurements.jsonl``; as strict as ``measurement.from_line``."""
    times = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    text, whole = {"type": "string"}, {"type": "integer", "minimum": 1}
    facts = {"type": "object"}

    def number(kind: str = "number") -> dict[str, Any]:
        return {"type": [kind, "null"], "minimum": 0}

    properties: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "target": {**text, "description": "Of an artefact; else `teacher`, `student` or `model`."},
        "scheme": text,
        "artifact": {**text, "description": "Digest of an artefact, or a model's name."},
        "device": {**text, "description": "Name of a device profile."},
        "runtime": text,
        "threads": {**whole, "description": "Asked for; observed.threads is what the runtime used."},
        "tokens": {**whole, "description": "Length of the text, 1 for an image; observed.tokens is what was fed."},
        "requested": {
            **facts,
            "description": "The protocol that was asked for.",
            "properties": {
                "backend": {"type": ["string", "null"]},
                "threads": whole,
                "length": {"type": ["string", "null"]},
                "texts": whole,
                "cpu_affinity": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}},
                "warmup_runs": number("integer"),
                "warmup_seconds": number(),
                "min_runs": whole,
                "min_seconds": number(),
                "max_seconds": number(),
                "blocks": whole,
            },
        },
        "observed": {
            **facts,
            "description": "What the runtime says that it did.",
            "properties": {
                "backend": {"type": ["string", "null"]},
                "threads": {"type": ["integer", "null"], "minimum": 0},
                "tokens": {"type": "array", "items": whole},
                "versions": facts,
                "others_share": {**number(), "description": "Share of all processors that other processes used."},
                "energy_uj": {**number(), "description": "Microjoules of an inference."},
            },
        },
        "load_ns": {**times, "description": "One value per fresh process, nanoseconds."},
        "first_inference_ns": {**times, "description": "One value per fresh process, nanoseconds."},
        "warmup": {**facts, "properties": {"runs": number("integer"), "seconds": number()}},
        "latency_ns": {
            "type": "array",
            "items": times,
            "description": "Raw samples in nanoseconds, a list per block, in the order in which they were taken.",
        },
        "blocks": {"type": "array", "items": facts, "description": "Per block, what it was beside its samples."},
        "memory": {
            **facts,
            "properties": {
                "baseline_bytes": number("integer"),
                "peak_bytes": number("integer"),
                "peak_above_bytes": number("integer"),
                "peak_reset": {"type": ["boolean", "null"]},
            },
        },
        "golden": {
            **facts,
            "properties": {
                "samples": whole,
                "max_abs_delta": number(),
                "agreement": {**number(), "maximum": 1},
                **{name: number("integer") for name in ("tokens", "equal", "ties", "differ")},
            },
        },
        "test": {**facts, "description": "The test split as the device answered it."},
        "sustained": {**facts, "properties": {"samples_ns": times}},
        "operators": {"type": "array", "items": facts, "description": "Time by operator, where the runtime tells."},
        "environment": {**facts, "description": "The device, and its load, around the measurement."},
        "flags": {"type": "array", "items": {"enum": sorted(FLAGS)}, "uniqueItems": True},
        "error": {"type": ["string", "null"], "description": "What went wrong; samples taken before that are kept."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A measurement: an artefact on a device at one thread count and input length",
        "type": "object",
        "properties": properties,
        "required": ["schema", "target", "scheme", "artifact", "device", "runtime", "threads", "tokens"],
        "additionalProperties": False,
        "if": {"properties": {"error": {"type": "null"}}},
        "then": {
            "properties": {"latency_ns": {"contains": {"minItems": 1}}},
            "required": ["latency_ns"],
        },
    }
