"""The gate: from facts to a verdict, in plain words. A pure function; it measures nothing and forgives nothing.

An artefact *passes* when no check failed, *fails* when one did, and has *failed* when it was never made or
never ran. A check that could not be made (no runtime on this host, bench off) has ``passed: null`` and says
why: it is not counted as passed, and not held against the artefact either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgekd.recipe import Gate

Facts = Mapping[str, Any]
BUDGETS = ("p50_ms", "peak_mb")  # judged by their worst value over devices, thread counts and lengths
LIMITS = {"p50_ms": "p50 in ms", "peak_mb": "peak memory in MB", "load_ms": "load in ms"}  # of a device's profile


@dataclass(frozen=True)
class Check:
    """One line of a verdict. ``value`` and ``limit`` share a unit; ``passed`` is None where it cannot be told."""

    name: str
    value: float | str | None
    limit: float | str | None
    passed: bool | None
    note: str = ""


def judge(
    gate: Gate,
    headline: str,
    verify: Facts,
    export: Facts,
    sibling: Facts | None,
    latency: Sequence[Facts] = (),
    comparisons: Sequence[Facts] = (),
    *,
    reference: bool = False,
) -> dict[str, Any]:
    """Verdict of one artefact.

    ``verify`` and ``export`` are its step facts, ``sibling`` the export facts of the fp32 artefact of the same
    target (or None), ``latency`` its bench summaries and ``comparisons`` those with the sibling, one per device,
    thread count and length (none where bench was off or the host has no runtime for it).
    ``reference``: a float artefact that only stands beside the recipe's schemes; budgets are for what ships.
    Returns ``{"verdict": "pass" | "fail", "checks": [...], "reasons": [str]}``.
    """
    if reference:
        gate = gate.model_copy(update={"size_mb": None, **dict.fromkeys(BUDGETS)})
    checks = [
        *_numbers(gate, headline, verify),
        *_faithful(verify.get("faithful")),
        *_size(gate, export, sibling),
        *_speed(gate, export, latency, comparisons),
        *_devices(gate, headline, verify, export, latency, reference=reference),
    ]
    reasons = [_reason(check) for check in checks if check.passed is False]
    return {
        "verdict": "fail" if reasons else "pass",
        "checks": [asdict(check) for check in checks],
        "reasons": reasons,
    }


def failed(message: str) -> dict[str, Any]:
    """Verdict of an artefact that was never made, or that its runtime could not run."""
    return {"verdict": "failed", "checks": [], "reasons": [message]}


def _reason(check: Check) -> str:
    value = f"{check.value:.4g}" if isinstance(check.value, float) else str(check.value)
    limit = f"{check.limit:.4g}" if isinstance(check.limit, float) else str(check.limit)
    return f"{check.name} is {value}, wanted {limit}" + (f" ({check.note})" if check.note else "")


def _at_least(name: str, value: float | None, limit: float | None, note: str = "") -> list[Check]:
    if limit is None:
        return []
    if value is None:
        return [Check(name, None, limit, None, "the two cannot be compared answer by answer")]
    return [Check(name, value, limit, value >= limit, note)]


def _at_most(name: str, value: float | None, limit: float | None, note: str = "") -> list[Check]:
    if limit is None:
        return []
    if value is None:
        return [Check(name, None, limit, None, note or "not measured")]
    return [Check(name, value, limit, value <= limit, note)]


def _numbers(gate: Gate, headline: str, verify: Facts) -> list[Check]:
    rows = "" if verify["samples"] == verify["of"] else f"on {verify['samples']} of {verify['of']} test rows"
    metric = verify["metrics"][headline]
    golden, agreement = verify["golden"], verify["agreement"]
    note = "largest |difference| of an output from the Program on the golden inputs"
    unseen = [length for length, examples in golden.get("lengths", {}).items() if not examples]
    if unseen:
        note += f"; none of them fits {' or '.join(unseen)} tokens"
    drop = round(verify["student_metrics"][headline] - metric, 12)
    checks = [
        Check(
            "golden outputs",
            golden["max_abs_delta"],
            golden["bound"],
            bool(golden["passed"]),
            note,
        ),
        *_perplexity(gate, verify, rows),
        *_bleu(gate, verify),
        *_at_most(f"{headline} drop", drop, gate.max_accuracy_drop, f"below the fp32 student {rows}".strip()),
        *_at_least("agreement with the Program", agreement.get("program"), gate.min_program_agreement, rows),
        *_at_least("agreement with the teacher", agreement.get("teacher"), gate.min_teacher_agreement, rows),
    ]
    teacher = verify["teacher_metrics"].get(headline)  # an endpoint has no outputs to measure
    if gate.min_teacher_ratio is not None and teacher:
        checks += _at_least(f"{headline} / teacher's", metric / teacher, gate.min_teacher_ratio, rows)
    return checks


def _perplexity(gate: Gate, verify: Facts, rows: str) -> list[Check]:
    if "perplexity" not in verify["metrics"]:
        return []
    found, student = (verify[name]["perplexity"] for name in ("metrics", "student_metrics"))
    limit = gate.max_perplexity_rise.get(verify["scheme"])
    return _at_most("perplexity rise", found / student - 1, limit, f"above the fp32 student's, a share {rows}".strip())


def _bleu(gate: Gate, verify: Facts) -> list[Check]:
    if "bleu" not in verify["metrics"]:
        return []
    drop = verify["student_metrics"]["bleu"] - verify["metrics"]["bleu"]
    return _at_most("BLEU drop", drop, gate.max_bleu_drop, "points below the fp32 student, of what both write")


def _faithful(facts: Facts | None) -> list[Check]:
    """What no recipe can switch off: see ``faithful.py``."""
    if facts is None:
        return []
    checks, numbers, moved = [], facts["numbers"], facts["invariance"]
    if numbers["numbers"]:
        missing = numbers["missing"]
        note = f"weights and scales of the Program, looked for bit for bit: {numbers['numbers']:,}"
        if missing:
            note += f"; missing {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
        checks.append(Check("arrays not in the file", len(missing), 0, not missing, note))
    kernels, size = facts["kernels"], facts["size"]
    if kernels["wanted"]:
        note = "layers that run in integers" + (f", by the {kernels['how']}" if kernels["how"] else "")
        if kernels["accelerated"] is None:
            note = f"cannot be told: {kernels.get('why', 'nothing was')}"
        elif not kernels["accelerated"]:
            note = f"not accelerated: too few {note}"
        checks.append(Check("accelerated", kernels["integer"], kernels["wanted"], kernels["accelerated"], note))
    value, limit = moved["largest"], moved["bound"]
    note = "largest change of an output by padding or a neighbour, as a share of the range of outputs"
    if moved["passed"] is None:
        note = "neither padding nor a batch can be tried"
    elif not moved["passed"] and value <= limit:
        value, limit = moved["quartile"], moved["quartile_bound"]
        note = "three rows in four change more than this by padding or a neighbour, and no rounding tie explains that"
    checks.append(Check("invariance", value, limit, moved["passed"], note))
    stored = size["bytes"] <= size["limit"]
    note = f"{size['expected']:,} bytes of numbers and what a graph needs beside them"
    note = note if stored else f"the weights are stored wider than their scheme says; {note}"
    return [*checks, Check("stored bytes", size["bytes"], size["limit"], stored, note)]


def _size(gate: Gate, export: Facts, sibling: Facts | None) -> list[Check]:
    checks: list[Check] = []
    if gate.not_larger and export["scheme"] != "fp32":
        limit = sibling["size_bytes"] if sibling else None
        passed = None if limit is None else export["size_bytes"] < limit
        checks.append(Check("size in bytes", export["size_bytes"], limit, passed, "must be below its float sibling"))
    return checks + _at_most("size in MB", export["size_bytes"] / 1e6, gate.size_mb)


def _speed(gate: Gate, export: Facts, latency: Sequence[Facts], comparisons: Sequence[Facts]) -> list[Check]:
    checks: list[Check] = []
    if gate.not_slower and export["scheme"] != "fp32":
        if not comparisons:
            checks.append(Check("latency", None, "not slower", None, "not measured"))
        for row in comparisons:
            passed = None if row["verdict"] == "cannot tell" else row["verdict"] != "slower"
            checks.append(
                Check(f"latency {_where(row)}", row["verdict"], "not slower", passed, "compared with its float sibling")
            )
    for row in latency:
        if "backend_differs" in row.get("flags", ()):
            checks.append(
                Check(f"runtime {_where(row)}", "backend differs", "as asked", False, "it fell back silently")
            )
    real = [row for row in latency if not row.get("emulated")]
    worst = {name: max((row[name] for row in real if row.get(name) is not None), default=None) for name in BUDGETS}
    return [
        *checks,
        *_at_most("p50 in ms", worst["p50_ms"], gate.p50_ms),
        *_at_most("peak memory in MB", worst["peak_mb"], gate.peak_mb),
    ]


def _devices(
    gate: Gate, headline: str, verify: Facts, export: Facts, latency: Sequence[Facts], *, reference: bool
) -> list[Check]:
    """What each device says for itself: its own answers, and the limits of its profile."""
    checks, seen = [], set()
    for row in latency:
        device, limits = row["device"], {} if reference else row.get("limits", {})
        for name, words in LIMITS.items():
            if name in limits and not row.get("emulated"):
                checks += _at_most(f"{words} {_where(row)}", row.get(name), limits[name], "the device's own limit")
        if (device, row["threads"]) in seen:
            continue
        seen.add((device, row["threads"]))
        if "size_mb" in limits:
            note = "the device's own limit"
            checks += _at_most(f"size in MB on {device}", export["size_bytes"] / 1e6, limits["size_mb"], note)
        checks += _answers(gate, headline, verify, row)
    return checks


def _answers(gate: Gate, headline: str, verify: Facts, row: Facts) -> list[Check]:
    """Golden inputs and, where it was asked for, the test split, as the device answered them."""
    checks, device, golden, test = [], row["device"], row.get("golden") or {}, row.get("test") or {}
    if "tokens" in golden:
        note = f"{golden['tokens']} tokens after {golden['samples']} golden prompts, on the device"
        name = f"agreement with the Program on {device}"
        checks += _at_least(name, golden["agreement"], gate.min_program_agreement, note)
    elif golden:
        delta, bound = golden.get("max_abs_delta"), verify["golden"]["bound"]
        note = golden.get("error", "largest |difference| from the Program, on the device")
        checks.append(Check(f"golden outputs on {device}", delta, bound, delta is not None and delta <= bound, note))
    if test:
        drop = round(verify["student_metrics"][headline] - test["metrics"][headline], 12)
        note = f"on the device, {test['samples']} test rows"
        checks += _at_most(f"{headline} drop on {device}", drop, gate.max_accuracy_drop, note)
        if "agreement" in test:
            name = f"agreement with the Program on {device}"
            checks += _at_least(name, test["agreement"], gate.min_program_agreement, note)
    return checks


def _where(row: Facts) -> str:
    fed = "an image" if row.get("length") == "image" else f"{row['tokens']} tokens"
    return f"on {row['device']}, {row['threads']} thread{'s' if row['threads'] != 1 else ''}, {fed}"
