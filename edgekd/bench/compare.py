"""Two sets of measurements against each other: two runs, two commits, two devices; and a baseline that fits into git.

Within one run artefacts are interleaved, and ``statistics.compare`` may speak of 3 %. Two runs are not: between them
the machine may have been updated, warmed up or given another neighbour, and no statistics over the blocks of either
run can know. So a regression is only what is larger than a threshold with its whole bootstrap interval, in
measurements without a flag that makes them doubtful; and only measurements of one protocol are compared at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgekd import measurement
from edgekd.artifact import Facts
from edgekd.bench import statistics
from edgekd.errors import BadInput
from edgekd.measurement import Measurement

SCHEMA = "edgekd/baseline/1"
COMPARISON = "edgekd/comparison/1"
THRESHOLD = 0.05
CONFIDENCE = 0.95
SEED = 0  # of the bootstrap
POINTS = 200  # order statistics of a baseline row, shared by its blocks...
LEAST_POINTS = 21  # ...but at least as many for each
DIGITS = 4  # significant digits of a time in a baseline: 0.05 % at worst
LOADS = 3  # a load time needs as many fresh processes on either side
TICK_NS = 100_000  # load times closer than this are not told apart
PAGES = 1 << 20  # nor peaks of memory closer than this, in bytes

# Measurements with one of these may be compared, but nothing is concluded from them.
DOUBTS = frozenset({"too_few_runs", "loaded_machine", "throttled", "hot", "on_battery", "coarse_clock"})
DOUBTS_INTERLEAVED = frozenset({"loaded_machine", "throttled"})  # of artefacts that were timed side by side
NO_LATENCY = frozenset({"emulated"})
PROTOCOL = (
    "backend",
    "threads",
    "length",
    "texts",
    "synthetic",
    "cpu_affinity",
    "warmup_runs",
    "warmup_seconds",
    "min_runs",
    "min_seconds",
    "max_seconds",
    "blocks",
)
OBSERVED = ("backend", "threads", "tokens")  # what a runtime did must be the same too
KEPT = ("runtime", "versions", "python", "cpu_affinity", "others_share", "energy_uj", *OBSERVED)  # in a baseline
ENVIRONMENT = ("os", "machine", "cpu", "cores", "governor", "emulated", "time")  # the same
BESIDE = "the two were not interleaved, so what changed between the runs counts too"


class Mismatch(BadInput):
    """Two measurements were not made in the same way: exit code 2."""


def read(path: Path) -> list[Measurement]:
    """Measurements of a run folder, a ``measurements.jsonl`` or a baseline file; raises BadInput."""
    file = path
    if path.is_dir():
        file = path / "bench" / "measurements.jsonl"
        file = file if file.is_file() or not (path / "measurements.jsonl").is_file() else path / "measurements.jsonl"
        if not file.is_file():
            todo = "Measure it: `edgekd bench`. Expected bench/measurements.jsonl in it."
            raise BadInput("this folder holds no measurements", where=str(path), todo=todo)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput("no such file", where=str(file), todo="Name a run folder or a file of measurements.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(file)) from None
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:  # more than one line, or broken: the reader of lines knows
        whole = None
    if isinstance(whole, dict) and str(whole.get("schema", "")).startswith("edgekd/baseline/"):
        return from_baseline(whole, where=str(file))
    found = measurement.read(file)
    if not found:
        raise BadInput("holds no measurements", where=str(file), todo="Measure again: `edgekd bench`.")
    return found


# --- a baseline ---


def baseline(measurements: Sequence[Measurement], *, created: str = "") -> Facts:
    """Measurements as a small document (``edgekd/baseline/1``), from which ``compare`` can be made again.

    Samples become at most POINTS order statistics a row, rounded to DIGITS digits: medians move by less than 0.1 %.
    What failed is left out. ``created``: informative, ISO 8601.
    """
    rows = [_row(one) for one in measurements if one.error is None]
    if not rows:
        raise BadInput("there is no measurement without an error, so there is no baseline", todo="Run `edgekd bench`.")
    return {"schema": SCHEMA, "created": created, "rows": rows}


def _row(one: Measurement) -> dict[str, Any]:
    blocks = [block for block in one.latency_ns if block]
    points = max(LEAST_POINTS, POINTS // len(blocks))
    drift, energy = drift_of(one), energy_of(one)
    return {
        "target": one.target,
        "scheme": one.scheme,
        "artifact": one.artifact,
        "device": one.device,
        "runtime": one.runtime,
        "threads": one.threads,
        "tokens": one.tokens,
        "requested": dict(one.requested),
        "observed": {name: one.observed[name] for name in KEPT if name in one.observed},
        "environment": {name: one.environment[name] for name in ENVIRONMENT if one.environment.get(name) is not None},
        "runs": list(one.observed.get("baseline", {}).get("runs") or [len(block) for block in blocks]),
        "medians_ns": [_rounded(median(block)) for block in blocks],
        "p90_ns": _rounded(statistics.percentile(one.samples_ns(), 90)),
        "p99_ns": _rounded(statistics.percentile(one.samples_ns(), 99)),
        "order_ns": [_order(block, points) for block in blocks],
        "load_ns": [_rounded(value) for value in one.load_ns],
        "first_inference_ns": [_rounded(value) for value in one.first_inference_ns],
        "memory": dict(one.memory),
        "flags": list(one.flags),
        **({"drift": drift} if drift is not None else {}),
        **({"energy_uj": energy} if energy is not None else {}),
    }


def _order(block: Sequence[int], points: int) -> list[int]:
    """The block's sorted samples, or as many evenly spaced quantiles of them; ends and median are kept."""
    if len(block) <= points:
        return [_rounded(value) for value in sorted(block)]
    points -= 1 - points % 2  # odd, so that one of them is the median
    return [_rounded(statistics.percentile(block, 100 * n / (points - 1))) for n in range(points)]


def _rounded(value: float) -> int:
    """DIGITS significant digits."""
    whole = round(value)
    return whole if abs(whole) < 10**DIGITS else round(whole, DIGITS - 1 - math.floor(math.log10(abs(whole))))


def from_baseline(document: Any, *, where: str = "baseline") -> list[Measurement]:
    """The rows of a baseline as measurements whose samples are its order statistics; raises BadInput."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise BadInput(f"schema {got!r} is not {SCHEMA!r}", where=where, todo="Make the baseline again.")
    rows = document.get("rows")
    if not isinstance(rows, list) or not rows:
        raise BadInput("has no rows", where=where, todo="Make the baseline again.")
    return [_from_row(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]


def _from_row(row: Any, where: str) -> Measurement:
    if not isinstance(row, dict):
        raise BadInput("is not an object", where=where)
    needed = {"requested", "observed", "order_ns", "runs", "flags"}
    if missing := sorted(needed - set(row)):
        raise BadInput(f"missing fields: {', '.join(missing)}", where=where, todo="Make the baseline again.")
    runs = row["runs"]
    if not isinstance(runs, list) or not all(isinstance(count, int) and count > 0 for count in runs):
        raise BadInput("runs is not a list of counts", where=where)
    line = {name: row[name] for name in ("target", "scheme", "artifact", "device", "runtime") if name in row}
    line |= {name: row[name] for name in ("threads", "tokens", "requested", "observed", "environment") if name in row}
    line |= {name: row[name] for name in ("load_ns", "first_inference_ns", "memory", "flags") if name in row}
    line |= {"schema": measurement.SCHEMA, "latency_ns": row["order_ns"]}
    one = measurement.from_line(json.dumps(line), where=where)
    kept = {name: row[name] for name in ("drift", "energy_uj", "runs") if name in row}
    return Measurement(**{**vars(one), "observed": {**one.observed, "baseline": kept}})


def drift_of(one: Measurement) -> float | None:
    """Last tenth of a sustained run over its first, medians; None where there was no such run."""
    kept = one.observed.get("baseline", {}).get("drift")
    if kept is not None:
        return float(kept)
    return statistics.drift(one.sustained.get("samples_ns", ()))


def energy_of(one: Measurement) -> float | None:
    """Microjoules of an inference; None where the device does not tell."""
    kept = one.observed.get("baseline", {}).get("energy_uj", one.observed.get("energy_uj"))
    return None if kept is None else float(kept)


def runs_of(one: Measurement) -> int:
    """Timed runs: of a baseline row those behind its order statistics."""
    kept = one.observed.get("baseline", {}).get("runs")
    return sum(kept) if kept else len(one.samples_ns())


# --- the comparison ---


def doubt(*sides: Measurement, interleaved: bool = False) -> str:
    """Why these measurements are not to be trusted, in the words of ``measurement.FLAGS``; empty where they are.

    ``interleaved``: they ran side by side, so only what may hit one and spare the other counts; the words are meant for
    ``statistics.compare(..., doubt=)``.
    """
    doubtful = DOUBTS_INTERLEAVED if interleaved else DOUBTS
    found = dict.fromkeys(flag for one in sides for flag in one.flags if flag in doubtful)
    return "; ".join(measurement.FLAGS.get(flag, flag) for flag in found)


@dataclass(frozen=True)
class _Pair:
    old: Measurement
    new: Measurement


def compare(
    a: Sequence[Measurement],
    b: Sequence[Measurement],
    threshold: float = THRESHOLD,
    *,
    devices: bool = False,
    where: str = "",
) -> list[Facts]:
    """Rows of ``b`` (new) against ``a`` (old), one per artefact, device, thread count and length that both have.

    ``devices``: the two are of different devices, and rows are matched without regard to the device; nothing is then
    called a regression. A row has ``ratio`` (new over old, of the medians of block medians), its two-level bootstrap
    ``interval`` (95 %), ``p`` (Mann-Whitney, of pooled samples: it knows nothing of machines), ``verdict`` "faster",
    "slower" or "cannot tell" (the interval lies wholly beyond the threshold), ``why``, ``notes``, and ``regression``;
    ``load``, ``memory``, ``energy`` and ``drift`` are null, or ``{"old", "new", "ratio", "verdict", "regression"}``.

    Raises Mismatch where protocols differ, BadInput where nothing is in common or the threshold is no share.
    """
    if not 0 < threshold < 1:
        raise BadInput(f"threshold is {threshold}, wanted a share between 0 and 1", todo="0.05 means 5 %.")
    pairs = list(_pairs(a, b, devices))
    if not pairs:
        todo = "Both need a measurement without error of the same target, scheme, threads and length"
        todo += "." if devices else " on the same device; to compare two devices, say so."
        raise BadInput(f"nothing in common ({_names(a)} against {_names(b)})", where=where, todo=todo)
    for pair in pairs:
        _check(pair, devices)
    return [_compared(pair, threshold, devices) for pair in pairs]


def _names(measurements: Sequence[Measurement]) -> str:
    good = dict.fromkeys(f"{m.target}-{m.scheme} on {m.device}" for m in measurements if m.error is None)
    return ", ".join(list(good)[:4]) + (", ..." if len(good) > 4 else "") or "nothing measured"


def _pairs(a: Sequence[Measurement], b: Sequence[Measurement], devices: bool) -> Iterator[_Pair]:
    """Matched by what was measured. A length matches by its name ("p50"): the texts behind it are then checked."""

    def key(one: Measurement) -> tuple[Any, ...]:
        device = None if devices else one.device
        return one.target, one.scheme, device, one.threads, one.requested.get("length") or one.tokens

    old: dict[tuple[Any, ...], Measurement] = {}
    for one in a:
        if one.error is None:
            old.setdefault(key(one), one)  # of several devices the first
    seen = set()
    for one in b:
        if one.error is None and (same := key(one)) in old and same not in seen:
            seen.add(same)
            yield _Pair(old[same], one)


def missing(a: Sequence[Measurement], b: Sequence[Measurement]) -> list[str]:
    """What the old set measured and the new one did not: ``onnx-w8a8 on local, 1 thread, p50: why``."""
    new = {_place(one): one for one in b}
    return [
        f"{place}: {new[place].error if place in new else 'not there'}"
        for one in a
        if one.error is None and ((place := _place(one)) not in new or new[place].error)
    ]


def _place(one: Measurement) -> str:
    length = one.requested.get("length") or f"{one.tokens} tokens"
    return f"{one.target}-{one.scheme} on {one.device}, {one.threads} thread{'s'[: one.threads > 1]}, {length}"


def _check(pair: _Pair, devices: bool) -> None:
    """Raise Mismatch that lists every part of the protocol in which the two differ."""
    old, new = pair.old, pair.new
    free = {"cpu_affinity", "backend"} if devices else set()
    found: dict[str, tuple[Any, Any]] = {"tokens": (old.tokens, new.tokens)}
    found |= {name: (old.requested.get(name), new.requested.get(name)) for name in PROTOCOL if name not in free}
    for name in OBSERVED:
        if name not in free:
            found[f"observed {name}"] = (old.observed.get(name), new.observed.get(name))
    if not devices:
        found["observed cpu affinity"] = (old.observed.get("cpu_affinity"), new.observed.get("cpu_affinity"))
    differ = [f"{name} {mine!r} and {theirs!r}" for name, (mine, theirs) in found.items() if not _same(mine, theirs)]
    if differ:
        todo = "Measure both with the same bench settings and data."
        raise Mismatch(f"not measured in the same way: {'; '.join(differ)}", where=_place(new), todo=todo)


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return list(mine) == list(theirs)
    return bool(mine == theirs)


def _compared(pair: _Pair, threshold: float, devices: bool) -> Facts:
    old, new = pair.old, pair.new
    medians = statistics.block_median(old.latency_ns), statistics.block_median(new.latency_ns)
    ratio = medians[1] / max(medians[0], 1e-9)
    low, high = statistics.ratio_interval(new.latency_ns, old.latency_ns, seed=SEED, confidence=CONFIDENCE)
    _, p = statistics.mann_whitney(new.samples_ns(), old.samples_ns())
    doubts = doubt(old, new)
    shown = f"95 % interval of the ratio {low:.3f} to {high:.3f}"
    word, why = "cannot tell", f"{shown} is not wholly beyond {_percent(threshold)}; {BESIDE}"
    if NO_LATENCY & {*old.flags, *new.flags}:
        why = "an emulated processor: numerics only, not latency"
    elif min(len(_filled(old)), len(_filled(new))) < 2:
        why = "a single block does not show how blocks differ"
    elif doubts:
        why = f"{doubts}; {shown}"
    elif low > 1 + threshold or high < 1 / (1 + threshold):
        word = "slower" if ratio > 1 else "faster"
        why = f"by {abs(ratio - 1):.1%}: {shown}; {BESIDE}"
    load, memory = _load(pair, threshold, devices), _memory(pair, threshold, devices)
    energy, drift = (_plain(one(old), one(new), threshold) for one in (energy_of, drift_of))
    slower = word == "slower" and not devices
    regressions = ["latency"] if slower else []
    regressions += [name for name, part in (("load", load), ("memory", memory)) if part and part["regression"]]
    return {
        "target": new.target,
        "scheme": new.scheme,
        "device": new.device,
        "against": old.device if devices else old.artifact[:16],
        "same_artifact": old.artifact == new.artifact,
        "threads": new.threads,
        "tokens": new.tokens,
        "length": new.requested.get("length"),
        "old_ms": round(medians[0] / 1e6, 5),
        "new_ms": round(medians[1] / 1e6, 5),
        "runs": [runs_of(old), runs_of(new)],
        "ratio": round(ratio, 4),
        "interval": [round(low, 4), round(high, 4)],
        "p": p,
        "threshold": threshold,
        "interleaved": False,
        "verdict": word,
        "why": why,
        "regression": bool(regressions),
        "regressions": regressions,
        "load": load,
        "memory": memory,
        "energy": energy,
        "drift": drift,
        "notes": _notes(old, new, devices),
    }


def _filled(one: Measurement) -> list[Sequence[int]]:
    return [block for block in one.latency_ns if block]


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _load(pair: _Pair, threshold: float, devices: bool) -> Facts | None:
    """Medians over fresh processes. A regression needs every new load to be slower than every old one, too."""
    old, new = pair.old.load_ns, pair.new.load_ns
    if not old or not new:
        return None
    before, after = median(old), median(new)
    ratio = after / max(before, 1)
    apart = min(new) > max(old) or max(new) < min(old)
    sure = apart and min(len(old), len(new)) >= LOADS and not doubt(pair.old, pair.new)
    sure = sure and abs(after - before) > TICK_NS and not NO_LATENCY & {*pair.old.flags, *pair.new.flags}
    word = "cannot tell"
    if sure and (ratio > 1 + threshold or ratio < 1 / (1 + threshold)):
        word = "slower" if ratio > 1 else "faster"
    return {
        "old": round(before / 1e6, 3),
        "new": round(after / 1e6, 3),
        "unit": "ms",
        "ratio": round(ratio, 4),
        "verdict": word,
        "regression": word == "slower" and not devices,
    }


def _memory(pair: _Pair, threshold: float, devices: bool) -> Facts | None:
    """Peak above the idle process. It does not jitter as times do: the threshold and a MiB decide."""
    name = "peak_above_bytes"
    old, new = pair.old.memory.get(name), pair.new.memory.get(name)
    if old is None or new is None:
        return None
    ratio = new / max(old, 1)
    word = "same"
    if "memory_not_reset" in {*pair.old.flags, *pair.new.flags}:
        word = "cannot tell"
    elif abs(new - old) > PAGES and (ratio > 1 + threshold or ratio < 1 / (1 + threshold)):
        word = "more" if ratio > 1 else "less"
    return {
        "old": round(old / 1e6, 3),
        "new": round(new / 1e6, 3),
        "unit": "MB",
        "ratio": round(ratio, 4),
        "verdict": word,
        "regression": word == "more" and not devices,
    }


def _plain(old: float | None, new: float | None, threshold: float) -> Facts | None:
    """One number a side, without repetition: shown, and never a regression."""
    if old is None or new is None:
        return None
    ratio = new / old if old else 1.0
    word = "more" if ratio > 1 + threshold else "less" if ratio < 1 / (1 + threshold) else "same"
    return {"old": old, "new": new, "ratio": round(ratio, 4), "verdict": word, "regression": False}


def _notes(old: Measurement, new: Measurement, devices: bool) -> list[str]:
    """What differs and may explain a difference: versions, and the machine."""
    found = []
    mine, theirs = (dict(one.observed.get("versions") or {}) for one in (old, new))
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            found.append(f"{name} {mine.get(name, 'none')} and {theirs.get(name, 'none')}")
    if not devices:
        for name in ("os", "cpu", "cores", "governor"):
            before, after = old.environment.get(name), new.environment.get(name)
            if None not in (before, after) and before != after:
                found.append(f"{name} {before} and {after}")
    return found


def document(rows: Sequence[Facts], absent: Sequence[str] = ()) -> Facts:
    """What the command prints with ``--json`` (``edgekd/comparison/1``)."""
    return {
        "schema": COMPARISON,
        "regression": any(row["regression"] for row in rows),
        "rows": list(rows),
        "missing": list(absent),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for a terminal or a Markdown table."""
    columns = ["what", "device", "threads", "length", "old ms", "new ms", "ratio", "95 % interval", "verdict"]
    columns += ["load", "memory", "why"]
    shown = []
    for row in rows:
        sides = [row["load"], row["memory"]]
        shown.append(
            [
                f"{row['target']}-{row['scheme']}",
                row["device"],
                str(row["threads"]),
                row["length"] or f"{row['tokens']} tokens",
                f"{row['old_ms']:.4g}",
                f"{row['new_ms']:.4g}",
                f"{row['ratio']:.3f}",
                f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
                row["verdict"] + (" (regression)" if "latency" in row["regressions"] else ""),
                *(
                    f"{one['ratio']:.2f}" + (" (regression)" if one["regression"] else "") if one else "-"
                    for one in sides
                ),
                "; ".join([row["why"], *row["notes"]]),
            ]
        )
    return columns, shown
