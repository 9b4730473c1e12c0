"""What is asked of a device, and in which order: a list, made before anything runs.

Every artefact gets fresh processes for memory and load, and one worker that stays and is asked for blocks of timed
runs. The blocks of all artefacts are interleaved in shuffled order, so that a machine that gets slower slows all of
them. No step depends on the answer to another: so the same list can be carried out over a wire, or by hand on a device
that cannot be plugged in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.bench.devices import Device
from edgekd.bench.subjects import Length, Row, Subject
from edgekd.recipe import Bench

SCHEMA = "edgekd/runner/1"
SEED = 0  # of the order of the blocks; the same in every run
REFILL = 2  # untimed runs of a later block: another process had the caches in between
AT_ONCE = 64  # rows of the test split in one request
PROFILED = 20  # runs behind a profile
FRESH = ("memory", "load")  # steps that are a process of their own; "time" opens the worker, the rest asks it


@dataclass(frozen=True)
class Step:
    """One line to a runner. ``position``: place in its block of artefacts, or first row of a part of the test split."""

    kind: str  # memory, load, time, golden, block, profile, test, sustained
    subject: str
    length: str
    document: Mapping[str, Any]
    position: int = 0


def steps(
    device: Device,
    threads: int,
    found: Sequence[Subject],
    lengths: Sequence[Length],
    bench: Bench,
    tests: Mapping[str, Sequence[Row]],
) -> list[Step]:
    """All steps of one device at one thread count; ``tests`` are the rows of the test split, by subject."""
    chance = random.Random(SEED)
    made: list[Step] = []
    for number, length in enumerate(lengths):
        made += _processes(device, threads, found, length, bench, with_worker=number == 0)
        if number == 0:
            made += _golden(found, length)
        made += _blocks(found, length, bench, chance)
    last = lengths[-1]
    made += _tests(found, last, tests)
    if bench.sustained_seconds:
        made += [_sustained(one, last, bench) for one in found]
    if bench.profile:  # last: where there is no profiler, the runner ends
        made += [
            _request("profile", one, last, {"request": "profile", "rows": list(last.rows[one.name]), "runs": PROFILED})
            for one in found
        ]
    return made


def job(device: Device, threads: int, subject: Subject, rows: Sequence[Row], phase: str) -> dict[str, Any]:
    """The runner's job for a subject; without rows for the phase ``describe``."""
    options = {name: value for name, value in subject.job.items() if name != "max_length"}
    if rows and "signature" not in options:
        options["signature"] = [{"name": name, "dtype": _dtype(values)} for name, values in rows[0].items()]
    return {
        "schema": SCHEMA,
        "phase": phase,
        "runtime": subject.runtime,
        "model": subject.model if isinstance(subject.model, str) else subject.place(subject.model),
        "threads": threads,
        "cpu_affinity": device.cpu_affinity,
        **({"rows": list(rows)} if rows else {}),
        **options,
    }


def _dtype(values: Any) -> str:
    """What transformers feeds: ids are int64, pixels float32."""
    return "float32" if isinstance(values[0], list) else "int64"


def _processes(
    device: Device, threads: int, found: Sequence[Subject], length: Length, bench: Bench, *, with_worker: bool
) -> Iterator[Step]:
    """Processes that load once: memory, further loads and, the first time, the worker that stays."""
    phases = ["memory", *["load"] * max(0, bench.cold_loads - 1 - with_worker)]
    for phase in [*phases, *["time"] * with_worker]:
        for one in found:
            yield Step(phase, one.name, length.name, job(device, threads, one, length.rows[one.name], phase))


def _request(kind: str, one: Subject, length: Length, document: Mapping[str, Any], position: int = 0) -> Step:
    return Step(kind, one.name, length.name, {"schema": SCHEMA, **document}, position)


def golden_rows(subject: Subject) -> list[tuple[Row, Any]]:
    """The Program's golden inputs that the artefact takes, each with the Program's logits."""
    if subject.golden is None:
        return []
    names, columns = list(subject.golden["inputs"]), subject.golden["inputs"].values()
    limit = subject.job["max_length"]
    return [
        (dict(zip(names, row, strict=True)), logits)
        for *row, logits in zip(*columns, subject.golden["outputs"]["logits"], strict=True)
        if "input_ids" not in names or limit is None or len(row[0]) <= limit
    ]


def _golden(found: Sequence[Subject], length: Length) -> Iterator[Step]:
    for one in found:
        rows = [row for row, _ in golden_rows(one)]
        if rows:
            yield _request("golden", one, length, {"request": "outputs", "rows": rows})


def _blocks(found: Sequence[Subject], length: Length, bench: Bench, chance: random.Random) -> Iterator[Step]:
    """Timed runs: A B C, B C A, ... in an order that is shuffled for every block."""
    for number in range(bench.blocks):
        request = {
            "request": "block",
            "warmup_runs": bench.warmup_runs if number == 0 else min(REFILL, bench.warmup_runs),
            "warmup_seconds": bench.warmup_seconds if number == 0 else 0,
            "min_runs": -(-bench.min_runs // bench.blocks),
            "min_seconds": bench.min_seconds / bench.blocks,
            "max_seconds": bench.max_seconds / bench.blocks,
        }
        for position, one in enumerate(chance.sample(list(found), len(found))):
            yield _request("block", one, length, {**request, "rows": list(length.rows[one.name])}, position)


def _tests(found: Sequence[Subject], length: Length, tests: Mapping[str, Sequence[Row]]) -> Iterator[Step]:
    for one in found:
        rows = list(tests.get(one.name, ()))
        for start in range(0, len(rows), AT_ONCE):
            part = {"request": "outputs", "rows": rows[start : start + AT_ONCE]}
            yield _request("test", one, length, part, start)


def _sustained(one: Subject, length: Length, bench: Bench) -> Step:
    seconds = bench.sustained_seconds
    limits = {"warmup_runs": 0, "warmup_seconds": 0, "min_runs": 1, "min_seconds": seconds, "max_seconds": seconds}
    return _request("sustained", one, length, {"request": "block", "rows": list(length.rows[one.name])[:1], **limits})
