"""The bench stage: every artefact on every device, beside the teacher and the student, in raw samples.

For each device, thread count and input length (the median and the longest of the test split, real texts; an image
has one size) every artefact gets fresh processes for load time, first inference and peak memory, and one worker that
stays and is asked for blocks of timed runs. The blocks of all artefacts are interleaved in shuffled order,
so that a machine that gets slower slows all of them. A runner that crashes, hangs or has no runtime becomes
a measurement with an error; the others go on. Nothing here knows a runtime: that is the runner's business.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from edgekd import measurement, registry
from edgekd.artifact import Artifact, Facts, Inputs, read_json
from edgekd.bench import devices, statistics
from edgekd.bench.transports._contract import Transport, Worker
from edgekd.errors import BadInput, DeviceError, EdgekdError
from edgekd.measurement import Measurement
from edgekd.recipe import Bench, Recipe

RUNNER_SCHEMA = "edgekd/runner/1"
ROWS = 8  # different texts per length, cycled
IMAGES = 2  # the same for images, which are all of one size and long in JSON
NEAR = 0.1  # a text counts for a length when its own is at most this share away
SEED = 0  # of the order of the blocks and of the bootstrap; the same in every run
OTHERS = 0.1  # share of all processors that other processes may use before a measurement is flagged
STABLE = 60  # stability score below which a measurement is flagged
MINIMAL_SECONDS = 0.2  # the kernel counts processor time in steps of 10 ms: too coarse for shorter blocks

# What an artefact is meant to run on. The runner reports what it did run on.
BACKENDS = {"onnx": "CPUExecutionProvider", "litert": "XNNPACK", "executorch": "XnnpackBackend", "openvino": "CPU"}

Row = Mapping[str, list[Any]]  # a row as the runner takes it: only the model's inputs, as nested lists


@dataclass(frozen=True)
class Subject:
    """Something that is measured: an artefact, the teacher or the student."""

    target: str  # of an artefact; else "teacher" or "student"
    scheme: str
    artifact: str  # digest, or the model's name
    runtime: str
    model: Path | str  # local file or folder, or a hub id
    processor: Path  # folder of its tokenizer or image processor; a student's may differ from the teacher's
    job: Mapping[str, Any] = field(default_factory=dict)  # signature, fixed_lengths, max_length, pad_id
    golden: Mapping[str, Any] | None = None
    beside: Sequence[Path] = ()  # files that the runtime finds next to the model, by the model's name

    @property
    def name(self) -> str:
        return f"{self.target}-{self.scheme}"


@dataclass(frozen=True)
class Length:
    """Texts of about the same length, or images. ``tokens`` is the length they stand for, 1 for an image."""

    name: str  # "p50" or "max", or "image"
    tokens: int
    rows: Mapping[str, Sequence[Row]]  # the same texts for each subject by its name, as its own tokenizer sees them


@dataclass
class _Record:
    """What is known so far about one subject at one length."""

    load_ns: list[int] = field(default_factory=list)
    first_inference_ns: list[int] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``measurements.jsonl``; facts: ``summaries`` and ``comparisons``.

    Parents: "data", "student" (the Program of the float student) and the export artefacts under any names. Raises
    BadInput for an unknown device or transport; an unreachable device gives measurements with errors.
    """
    began = time.monotonic()
    bench = recipe.bench
    profiles = [devices.load(name) for name in bench.devices]
    task = registry.load("tasks", recipe.task)
    found = subjects(recipe, inputs)
    lengths = choose_lengths(recipe, task, inputs["data"].path, found)
    per_length = len(found) * (1 + max(0, bench.cold_loads - 1) + bench.blocks)
    total = len(profiles) * len(bench.threads) * (len(found) + len(lengths) * per_length)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        inputs.progress(min(done, total), total, "passes")

    measurements = [
        one
        for device in profiles
        for threads in bench.threads
        for one in _on_device(device, threads, task, found, lengths, bench, tick)
    ]
    measurement.write(out / "measurements.jsonl", measurements)
    return {
        "summaries": [summarise(one) for one in measurements],
        "comparisons": compare(measurements),
        "environments": {one.device: dict(one.environment) for one in measurements},
        "lengths": {length.name: {"tokens": length.tokens, "texts": _texts(length)} for length in lengths},
        "failed": sorted({f"{one.target}-{one.scheme}: {one.error}" for one in measurements if one.error}),
        "seconds": round(time.monotonic() - began, 1),
    }


def subjects(recipe: Recipe, inputs: Inputs) -> list[Subject]:
    """The teacher, the student and every export artefact among the parents, in that order.

    The student is timed as its exported Program: whatever its shape, that file needs no code of its own.
    """
    data, teacher = inputs["data"], recipe.teacher.model
    pad_id = inputs.parents.get("student", data).facts.get("pad_token_id", 0)
    found = []
    if teacher is not None:
        place = Path(teacher) if Path(teacher).exists() else teacher
        found.append(Subject("teacher", "fp32", Path(teacher).name, "torch", place, data.path / "tokenizer"))
    if "student" in inputs.parents:
        student = inputs["student"]
        job = {"max_length": student.facts.get("max_length")}
        found.append(
            Subject("student", "fp32", student.digest, "torch", student.path / "program.pt2", student.path, job)
        )
    exports = [parent for parent in inputs.parents.values() if "target" in parent.facts and "file" in parent.facts]
    return found + [_exported(one, pad_id) for one in exports]


def _exported(artifact: Artifact, pad_id: int) -> Subject:
    facts = artifact.facts
    golden = artifact.path / "golden.json"
    return Subject(
        target=facts["target"],
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
    )


def choose_lengths(recipe: Recipe, task: Any, data: Path, found: Sequence[Subject]) -> list[Length]:
    """The median and the largest length of the test split, each with the texts nearest to it; or two images.

    Lengths are counted by the tokenizer of the artefacts (the teacher's, where there are none).
    """
    from edgekd.data.stage import read_split

    examples = read_split(data, "test")
    if not examples:
        raise BadInput("test.jsonl is empty, so there is nothing to time", where=str(data))
    limits = [recipe.data.max_length, *(one.job.get("max_length") for one in found)]
    limit = min(size for size in limits if size is not None)

    def length(name: str, tokens: int, chosen: Sequence[int]) -> Length:
        texts = [examples[index] for index in chosen]
        return Length(name, tokens, {one.name: _rows(task, one.processor, texts, limit) for one in found})

    if "input_ids" not in task.INPUTS:
        return [length("image", 1, range(len(examples))[:IMAGES])]
    sizes = [len(row["input_ids"]) for row in _rows(task, found[-1].processor, examples, limit)]
    wanted = {"p50": round(statistics.percentile(sizes, 50)), "max": max(sizes)}
    if wanted["p50"] == wanted["max"]:
        del wanted["p50"]
    return [length(name, tokens, _nearest(sizes, tokens)) for name, tokens in wanted.items()]


def _rows(task: Any, processor: Path, examples: Sequence[Mapping[str, Any]], limit: int) -> list[Row]:
    """The examples as a runner takes them: the model's inputs and nothing else, free of numpy."""
    encoded = task.encode(task.processor(processor), examples, limit)
    return [{name: _listed(row[name]) for name in task.INPUTS} for row in encoded]


def _listed(values: Any) -> list[Any]:
    found: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    return found


def _nearest(sizes: Sequence[int], tokens: int) -> list[int]:
    """At most ROWS rows whose length is within NEAR of ``tokens``, the nearest first; at least one."""
    ordered = sorted(range(len(sizes)), key=lambda row: abs(sizes[row] - tokens))
    near = [row for row in ordered[:ROWS] if abs(sizes[row] - tokens) <= NEAR * tokens]
    return near or ordered[:1]


def _texts(length: Length) -> int:
    return max((len(rows) for rows in length.rows.values()), default=0)


def _on_device(
    device: devices.Device,
    threads: int,
    task: Any,
    found: Sequence[Subject],
    lengths: Sequence[Length],
    bench: Bench,
    tick: Callable[[], None],
) -> list[Measurement]:
    """All measurements of one device at one thread count."""
    module = registry.load("transports", device.transport)
    try:
        transport: Transport = module.connect(device)
    except DeviceError as error:
        lost = {length.name: {one.name: _Record(error=str(error)) for one in found} for length in lengths}
        return _measurements(device, threads, found, lengths, bench, lost, {})
    try:
        before = transport.probe()
        records = _Session(device, threads, task, bench, transport, tick).measure(found, lengths)
        load_before, load_after = before.pop("load_average", None), transport.probe().get("load_average")
    finally:
        transport.close()
    environment = {
        **before,
        "load_average_before": load_before,
        "load_average_after": load_after,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return _measurements(device, threads, found, lengths, bench, records, environment)


class _Session:
    """One device at one thread count: its transport, and which subjects are lost."""

    def __init__(
        self,
        device: devices.Device,
        threads: int,
        task: Any,
        bench: Bench,
        transport: Transport,
        tick: Callable[[], None],
    ) -> None:
        self.device, self.threads, self.task = device, threads, task
        self.bench, self.transport, self.tick = bench, transport, tick
        self.lost: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}
        self.order = random.Random(SEED)

    def measure(self, found: Sequence[Subject], lengths: Sequence[Length]) -> dict[str, dict[str, _Record]]:
        """Records by length and subject."""
        self.transport.push(devices.data_folder("runtimes") / self.device.runner, "runner")
        for one in found:
            if isinstance(one.model, Path):
                for file in (one.model, *one.beside):
                    self._guarded(one, self.transport.push, file, _place(one, file))
        records = {length.name: {one.name: _Record() for one in found} for length in lengths}
        try:
            for number, length in enumerate(lengths):
                self._fresh(found, length, records[length.name], with_worker=number == 0)
                self._blocks(found, length, records[length.name])
                for one in found:
                    records[length.name][one.name].error = self.lost.get(one.name)
                    first = records[lengths[0].name][one.name]
                    records[length.name][one.name].golden = first.golden
        finally:
            for worker in self.workers.values():
                worker.close()
        return records

    def _guarded(self, subject: Subject, action: Callable[..., None], *arguments: Any) -> None:
        """Do it unless the subject is lost; an error loses the subject and nobody else."""
        if subject.name in self.lost:
            return
        try:
            action(*arguments)
        except EdgekdError as error:
            self.lost[subject.name] = str(error)

    def _fresh(
        self, found: Sequence[Subject], length: Length, records: Mapping[str, _Record], *, with_worker: bool
    ) -> None:
        """Processes that load once: memory, further loads and, the first time, the worker that stays."""
        phases = ["memory", *["load"] * max(0, self.bench.cold_loads - 1 - with_worker)]
        for phase in [*phases, *["time"] * with_worker]:
            for one in found:
                self._guarded(one, self._load, one, length, records[one.name], phase)
                self.tick()

    def _load(self, subject: Subject, length: Length, record: _Record, phase: str) -> None:
        job = self._job(subject, length, phase)
        if phase == "time":
            self.workers[subject.name] = self.transport.open(self._command())
            answer = self._ask(subject, job)
            record.golden = self._golden(subject)
        else:
            done = self.transport.exec(
                self._command(), stdin=json.dumps(job).encode() + b"\n", timeout=self.bench.timeout_seconds
            )
            answer = parsed(done.stdout, done.stderr, done.code)
        record.load_ns.append(answer["load_ns"])
        record.first_inference_ns.append(answer["first_inference_ns"])
        record.observed = answer["observed"]
        record.memory = answer.get("memory", record.memory)

    def _blocks(self, found: Sequence[Subject], length: Length, records: Mapping[str, _Record]) -> None:
        """Timed runs: A B C, B C A, ... in an order that is shuffled for every block."""
        bench, blocks = self.bench, self.bench.blocks
        for number in range(blocks):
            request = {
                "schema": RUNNER_SCHEMA,
                "request": "block",
                "warmup_runs": bench.warmup_runs,
                "warmup_seconds": bench.warmup_seconds if number == 0 else 0,  # later blocks only refill the caches
                "min_runs": -(-bench.min_runs // blocks),
                "min_seconds": bench.min_seconds / blocks,
                "max_seconds": bench.max_seconds / blocks,
            }
            for position, one in enumerate(self.order.sample(list(found), len(found))):
                asked = {**request, "rows": list(length.rows[one.name])}
                self._guarded(one, self._block, one, records[one.name], asked, position)
                self.tick()

    def _block(self, subject: Subject, record: _Record, request: Facts, position: int) -> None:
        record.blocks.append({"position": position, **self._ask(subject, request)})

    def _golden(self, subject: Subject) -> dict[str, Any]:
        """The Program's golden inputs, answered on the device by the runner: how far its outputs are."""
        if subject.golden is None:
            return {}
        import numpy as np

        names, columns = list(subject.golden["inputs"]), subject.golden["inputs"].values()
        limit = subject.job["max_length"]
        pairs = [
            (dict(zip(names, row, strict=True)), np.array(logits, np.float32))
            for *row, logits in zip(*columns, subject.golden["outputs"]["logits"], strict=True)
            if "input_ids" not in names or limit is None or len(row[0]) <= limit
        ]
        if not pairs:
            return {}
        request = {"schema": RUNNER_SCHEMA, "request": "outputs", "rows": [row for row, _ in pairs]}
        answers = [np.array(one, np.float32) for one in self._ask(subject, request)["logits"]]
        expected = [logits for _, logits in pairs]
        if any(a.shape != b.shape for a, b in zip(answers, expected, strict=True)):
            raise DeviceError("the runner's outputs have another shape than the Program's")
        found = {
            "samples": len(pairs),
            "max_abs_delta": max(float(np.abs(a - b).max()) for a, b in zip(answers, expected, strict=True)),
        }
        same_N = self.task.agree(answers, expected)  # tokens stand for units here
        return found if same_N is None else {**found, "agreement": float(np.mean(same_N))}

    def _ask(self, subject: Subject, document: Mapping[str, Any]) -> dict[str, Any]:
        line = json.dumps(document).encode()
        return parsed(self.workers[subject.name].ask(line, timeout=self.bench.timeout_seconds), b"", 0)

    def _job(self, subject: Subject, length: Length, phase: str) -> dict[str, Any]:
        rows = list(length.rows[subject.name])
        options = {name: value for name, value in subject.job.items() if name != "max_length"}
        return {
            "schema": RUNNER_SCHEMA,
            "phase": phase,
            "runtime": subject.runtime,
            "model": _place(subject, subject.model) if isinstance(subject.model, Path) else subject.model,
            "threads": self.threads,
            "cpu_affinity": self.device.cpu_affinity,
            "rows": rows,
            "signature": [{"name": name, "dtype": _dtype(values)} for name, values in rows[0].items()],
            **options,
        }

    def _command(self) -> list[str]:
        return [self.device.python or sys.executable, "runner"]


def _dtype(values: Any) -> str:
    """What transformers feeds: ids are int64, pixels float32."""
    return "float32" if isinstance(values[0], list) else "int64"


def _place(subject: Subject, file: Path) -> str:
    """Where the subject's model, or a file beside it, lies on the device; the suffix is kept, runtimes look at it."""
    return f"models/{subject.name}{file.suffix}"


def parsed(stdout: bytes, stderr: bytes, code: int) -> dict[str, Any]:
    """The runner's document, the last line of its stdout; raises DeviceError where it is an error or none."""
    lines = stdout.decode(errors="replace").strip().splitlines()
    try:
        document = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        said = " | ".join(stderr.decode(errors="replace").strip().splitlines())[-400:] or "(it said nothing)"
        raise DeviceError(f"the runner {how} without an answer: {said}") from None
    if not isinstance(document, dict) or document.get("schema") != RUNNER_SCHEMA:
        raise DeviceError(f"the runner does not speak {RUNNER_SCHEMA}", todo="Install one edgekd on host and device.")
    error = document.get("error")
    if error:
        prefix = "not measured: " if error["kind"] == "unavailable" else "the runner failed: "
        raise DeviceError(prefix + error["message"])
    return document


def _measurements(
    device: devices.Device,
    threads: int,
    found: Sequence[Subject],
    lengths: Sequence[Length],
    bench: Bench,
    records: Mapping[str, Mapping[str, _Record]],
    environment: Facts,
) -> list[Measurement]:
    return [
        _measurement(device, threads, one, length, bench, records[length.name][one.name], environment)
        for length in lengths
        for one in found
    ]


def _measurement(
    device: devices.Device,
    threads: int,
    subject: Subject,
    length: Length,
    bench: Bench,
    record: _Record,
    environment: Facts,
) -> Measurement:
    blocks = [{name: value for name, value in block.items() if name != "samples_ns"} for block in record.blocks]
    warmups = [block["warmup"] for block in blocks]
    requested = {
        "backend": BACKENDS.get(subject.runtime),
        "threads": threads,
        "length": length.name,
        "texts": len(length.rows[subject.name]),
        "cpu_affinity": device.cpu_affinity,
        **bench.model_dump(
            include={"warmup_runs", "warmup_seconds", "min_runs", "min_seconds", "max_seconds", "blocks"}
        ),
    }
    tokens = sorted({size for block in blocks for size in block["tokens"]})
    one = Measurement(
        target=subject.target,
        scheme=subject.scheme,
        artifact=subject.artifact,
        device=device.name,
        runtime=subject.runtime,
        threads=threads,
        tokens=length.tokens,
        requested=requested,
        observed={**record.observed, "tokens": tokens, "others_share": others_share(blocks)},
        load_ns=tuple(record.load_ns),
        first_inference_ns=tuple(record.first_inference_ns),
        warmup={"runs": sum(w["runs"] for w in warmups), "seconds": sum(w["seconds"] for w in warmups)},
        latency_ns=tuple(tuple(block["samples_ns"]) for block in record.blocks),
        blocks=tuple(blocks),
        memory=record.memory,
        golden=record.golden,
        environment=environment,
        error=record.error,
    )
    return Measurement(**{**vars(one), "flags": tuple(flags(one))})


def others_share(blocks: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of all processors that other processes (and other guests of the host) used during the blocks.

    None where the kernel does not tell, or tells too coarsely for so short a time.
    """
    wall = sum(block["wall_ns"] for block in blocks)
    busy = [block["machine_busy_ns"] for block in blocks]
    if wall < MINIMAL_SECONDS * 1e9 or None in busy:
        return None
    others = max(0, sum(busy) - sum(block["cpu_ns"] for block in blocks))
    return float(others / (wall * blocks[0]["cpus"]))


def flags(one: Measurement) -> list[str]:
    """What a reader must know before trusting it; names from ``measurement.FLAGS``. None for a failed one."""
    if one.error:
        return []
    observed, requested = one.observed, one.requested
    backend = observed.get("backend")
    wanted = requested["backend"]
    tests = {
        "too_few_runs": len(one.samples_ns()) < requested["min_runs"],
        "loaded_machine": (observed.get("others_share") or 0) > OTHERS,
        "backend_differs": None not in (wanted, backend) and wanted not in str(backend).split(", "),
        "threads_differ": observed.get("threads", one.threads) != one.threads,
        "unstable": statistics.stability(one.samples_ns()) < STABLE,
        "governor": one.environment.get("governor") == "powersave",
        "memory_not_reset": one.memory.get("peak_reset") is False,
        "golden_differs": one.golden.get("agreement", 1) < 1,
    }
    return [name for name, is_so in tests.items() if is_so]


def summarise(one: Measurement) -> Facts:
    """One row for tables and gates, times in milliseconds, memory in 10^6 bytes above the idle process.

    ``p50_ms`` is the median of the block medians and ``p50_ci_ms`` its 95 % bootstrap interval; ``p90_ms``
    and ``p99_ms`` are of all samples. A failed measurement has None in their places, and its error.
    """
    samples = one.samples_ns() if one.error is None else []
    interval = statistics.median_interval(one.latency_ns, seed=SEED) if samples else None
    peak = one.memory.get("peak_above_bytes")
    return {
        "target": one.target,
        "scheme": one.scheme,
        "device": one.device,
        "threads": one.threads,
        "tokens": one.tokens,
        "fed_tokens": list(one.observed.get("tokens", [])),
        "length": one.requested.get("length"),
        "p50_ms": _ms(statistics.block_median(one.latency_ns)) if samples else None,
        "p50_ci_ms": [_ms(bound) for bound in interval] if interval else None,
        "p90_ms": _ms(statistics.percentile(samples, 90)) if samples else None,
        "p99_ms": _ms(statistics.percentile(samples, 99)) if samples else None,
        "runs": len(samples),
        "load_ms": _ms(median(one.load_ns)) if one.load_ns else None,
        "first_ms": _ms(median(one.first_inference_ns)) if one.first_inference_ns else None,
        "peak_mb": round(peak / 1e6, 3) if peak is not None else None,
        "stability": round(statistics.stability(samples), 1) if samples else None,
        "backend": one.observed.get("backend"),
        "versions": dict(one.observed.get("versions", {})),
        "golden": dict(one.golden),
        "flags": list(one.flags),
        "error": one.error,
    }


def _ms(ns: float) -> float:
    return round(ns / 1e6, 5)


def compare(measurements: Sequence[Measurement]) -> list[Facts]:
    """Each quantized artefact against the float artefact of the same target, device, threads and length."""
    good = {(m.target, m.scheme, m.device, m.threads, m.tokens): m for m in measurements if m.error is None}
    rows = []
    for (target, scheme, device, threads, tokens), one in good.items():
        sibling = good.get((target, "fp32", device, threads, tokens))
        if scheme == "fp32" or sibling is None:
            continue
        found = statistics.compare(one.latency_ns, sibling.latency_ns)
        rows.append(
            {
                "target": target,
                "scheme": scheme,
                "against": "fp32",
                "device": device,
                "threads": threads,
                "tokens": tokens,
                "length": one.requested.get("length"),
                "verdict": found.verdict,
                "ratio": round(found.ratio, 4),
                "p": found.p,
                "why": found.why,
            }
        )
    return rows
