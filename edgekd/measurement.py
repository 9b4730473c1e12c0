"""One measurement: an artefact on a device at one thread count and input length, with every raw sample.

A line of ``measurements.jsonl`` is one Measurement. It keeps what was asked for beside what was observed, so
that a silent fallback shows; it keeps raw samples, so that any statistic can be made later; and a measurement
that failed is kept and says why. An average is not a measurement. Unknown schemas and negative or
non-integer times are refused when a line is read. Names follow LiteRT's ``BenchmarkResult`` (init, first
inference, warm-up, steady state) and the environment block of MLPerf Mobile's extended results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput

SCHEMA = "edgekd/measurement/1"

FLAGS = {
    "too_few_runs": "fewer timed runs than asked for",
    "loaded_machine": "other processes used a noticeable share of the processors while it was timed",
    "backend_differs": "the runtime used another backend than asked for",
    "threads_differ": "the runtime used another number of threads than asked for",
    "unstable": "stability score below 60 of 100",
    "governor": "the frequency governor saves power",
    "throttled": "the device says that it is throttling",
    "hot": "warmer than the device's limit",
    "on_battery": "running on battery",
    "coarse_clock": "one inference is not much longer than a tick of the clock",
    "memory_not_reset": "the kernel did not reset the peak, so it may include what came before the load",
    "synthetic_inputs": "fed zeros instead of data",
    "emulated": "an emulated processor: numerics only, not latency",
    "own_attention": "attention is the runner's own, not the runtime's",
    "golden_differs": "golden inputs gave another answer than the Program",
}


@dataclass(frozen=True)
class Measurement:
    """One artefact on one device, runtime, thread count and input length.

    ``artifact`` is the digest of an artefact, or a model's name. ``tokens`` is the length of the text, 1 for an image;
    ``observed["tokens"]`` what the runtime was fed (a fixed-length artefact is padded). ``latency_ns``
    holds one list of raw samples per block, in the order in which they were taken. ``load_ns`` and
    ``first_inference_ns`` hold one value per fresh process (files may be in the page cache). ``error`` is
    None, or says what went wrong; samples taken before that are kept.
    """

    target: str
    scheme: str
    artifact: str
    device: str
    runtime: str
    threads: int
    tokens: int
    requested: Mapping[str, Any] = field(default_factory=dict)
    observed: Mapping[str, Any] = field(default_factory=dict)
    load_ns: tuple[int, ...] = ()
    first_inference_ns: tuple[int, ...] = ()
    warmup: Mapping[str, Any] = field(default_factory=dict)  # {"runs", "seconds"}
    latency_ns: tuple[tuple[int, ...], ...] = ()
    blocks: tuple[Mapping[str, Any], ...] = ()  # per block {"position", "wall_ns", "cpu_ns", "machine_busy_ns", ...}
    memory: Mapping[str, Any] = field(default_factory=dict)  # {"baseline_bytes", "peak_bytes", "peak_above_bytes", ...}
    golden: Mapping[str, Any] = field(default_factory=dict)  # {"samples", "max_abs_delta", "agreement"}; see formats.md
    test: Mapping[str, Any] = field(default_factory=dict)  # the test split on the device: {"samples", "metrics", ...}
    sustained: Mapping[str, Any] = field(default_factory=dict)  # a block without an end: {"samples_ns", "wall_ns", ...}
    operators: tuple[Mapping[str, Any], ...] = ()  # {"name", "type", "ns", "calls"}, means of a run
    environment: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    error: str | None = None

    def samples_ns(self) -> list[int]:
        """All timed samples of all blocks."""
        return [sample for block in self.latency_ns for sample in block]


def to_line(measurement: Measurement) -> str:
    """The measurement as one JSON line, without the line break. Raises ValueError for NaN."""
    return json.dumps({"schema": SCHEMA, **asdict(measurement)}, ensure_ascii=False, allow_nan=False)


def from_line(line: str, *, where: str = "measurement") -> Measurement:
    """Parse and validate one line; raises BadInput that says what is wrong with it."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"not valid JSON ({error})", where=where) from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        got = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise BadInput(f"schema {got!r} is not {SCHEMA!r}", where=where)
    del value["schema"]
    names = {f.name for f in fields(Measurement)}
    if unknown := sorted(set(value) - names):
        raise BadInput(f"unknown fields: {', '.join(unknown)}", where=where)
    if missing := sorted({"target", "scheme", "artifact", "device", "runtime", "threads", "tokens"} - set(value)):
        raise BadInput(f"missing fields: {', '.join(missing)}", where=where)
    _check(value, where)
    for name in ("load_ns", "first_inference_ns", "flags", "blocks", "operators"):
        value[name] = tuple(value.get(name, ()))
    value["latency_ns"] = tuple(tuple(block) for block in value.get("latency_ns", ()))
    return Measurement(**value)


def _check(value: dict[str, Any], where: str) -> None:
    for name in ("target", "scheme", "artifact", "device", "runtime"):
        if not isinstance(value[name], str):
            raise BadInput(f"{name} is not text: {value[name]!r}", where=where)
    for name in ("threads", "tokens"):
        if not _whole(value[name], least=1):
            raise BadInput(f"{name} is not a positive whole number: {value[name]!r}", where=where)
    for name in ("requested", "observed", "warmup", "memory", "golden", "test", "sustained", "environment"):
        if not isinstance(value.get(name, {}), dict):
            raise BadInput(f"{name} is not an object", where=where)
    blocks = value.get("latency_ns", [])
    lists = [value.get("load_ns", []), value.get("first_inference_ns", [])]
    if not isinstance(blocks, list) or not all(isinstance(block, list) for block in [*blocks, *lists]):
        raise BadInput("times are not lists of samples", where=where)
    if not all(_whole(sample, least=0) for samples in [*blocks, *lists] for sample in samples):
        raise BadInput("a time is not a whole number of nanoseconds", where=where)
    flags = value.get("flags", [])
    if not isinstance(flags, list) or (unknown := sorted(set(flags) - set(FLAGS))):
        raise BadInput(f"unknown flags: {', '.join(map(str, unknown if isinstance(flags, list) else []))}", where=where)
    error = value.get("error")
    if error is not None and not isinstance(error, str):
        raise BadInput(f"error is not text: {error!r}", where=where)
    if error is None and not any(blocks):
        raise BadInput("neither samples nor an error", where=where)


def _whole(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def write(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write ``measurements.jsonl``."""
    path.write_text("".join(to_line(one) + "\n" for one in measurements), encoding="utf-8")


def read(path: Path) -> list[Measurement]:
    """Read ``measurements.jsonl``; raises BadInput naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BadInput("no such file", where=str(path), todo="`edgekd bench` makes it.") from None
    return [from_line(line, where=f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
