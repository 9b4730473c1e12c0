"""Carries the steps out on one device: what comes back becomes records, and what breaks costs as little as it can.

A runner that crashes, hangs or has no runtime loses its own artefact; a device that no longer answers loses what is
left to do on it. Samples taken before that are kept beside the error. Nothing here knows a runtime: that is the
runner's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.artifact import Facts
from edgekd.bench import runners, schedule
from edgekd.bench.devices import Device
from edgekd.bench.schedule import Step
from edgekd.bench.subjects import Length, Row, Subject
from edgekd.bench.transports._contract import Transport, Waiting, Worker
from edgekd.errors import DeviceError, EdgekdError
from edgekd.recipe import Bench


@dataclass
class Record:
    """What is known so far about one subject at one length."""

    load_ns: list[int] = field(default_factory=list)
    first_inference_ns: list[int] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Any] = field(default_factory=dict)
    golden: list[Any] = field(default_factory=list)  # logits of each golden row
    test: list[Any] = field(default_factory=list)  # logits of each row of the test split
    sustained: dict[str, Any] = field(default_factory=dict)
    operators: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None


Records = dict[str, dict[str, Record]]  # by length and subject


def measure(
    transport: Transport,
    device: Device,
    threads: int,
    found: Sequence[Subject],
    lengths: Sequence[Length],
    bench: Bench,
    tests: Mapping[str, Sequence[Row]],
    tick: Callable[[], None],
) -> Records:
    """Carry out ``schedule.steps``; never raises for what a device or a runner does."""
    session = _Session(transport, device, found, lengths, bench.timeout_seconds)
    try:
        session.push()
        for step in schedule.steps(device, threads, found, lengths, bench, tests):
            session.carry_out(step)
            tick()
    finally:
        session.close()
    for length in lengths:
        for one in found:
            session.records[length.name][one.name].error = session.lost.get(one.name) or session.waiting.get(one.name)
    return session.records


def describe(transport: Transport, device: Device, subject: Subject, timeout: float) -> list[Facts]:
    """The inputs of a bare model, as its runtime on the device sees them; raises DeviceError."""
    session = _Session(transport, device, [subject], [], timeout)
    session.push()
    if subject.name in session.lost:
        raise DeviceError(session.lost[subject.name])
    answer = session.fresh(subject.runtime, schedule.job(device, 1, subject, (), "describe"))
    return list(answer["inputs"])


class _Session:
    """One device at one thread count: its workers, what is lost, and what is known."""

    def __init__(
        self,
        transport: Transport,
        device: Device,
        found: Sequence[Subject],
        lengths: Sequence[Length],
        timeout: float,
    ) -> None:
        self.transport, self.device, self.timeout = transport, device, timeout
        self.subjects = {one.name: one for one in found}
        self.records: Records = {length.name: {one.name: Record() for one in found} for length in lengths}
        self.lost: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}
        self.gone: str | None = None  # why the device no longer answers

    def push(self) -> None:
        """Runners and models; what cannot be pushed is lost."""
        pushed: set[str] = set()
        for one in self.subjects.values():
            try:
                files = dict(runners.files(self.device, one.runtime))
                if isinstance(one.model, Path):
                    files |= {one.place(file): file for file in (one.model, *one.beside)}
                for place, file in files.items():
                    if place not in pushed:
                        self.transport.push(file, place)
                        pushed.add(place)
            except EdgekdError as error:
                self._lose(one.name, error)

    def carry_out(self, step: Step) -> None:
        """One step, unless its subject is lost; an error loses the subject and nobody else."""
        if step.subject in self.lost:
            return
        try:
            self._fold(step, self._answer(step))
        except Waiting as waiting:
            self.waiting[step.subject] = str(waiting)  # not lost: every step must be written down
        except EdgekdError as error:
            if step.kind == "profile":  # a runtime without a profiler is no failure
                self.records[step.length][step.subject].notes.append(str(error))
                return
            self._lose(step.subject, error)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers.values():
            worker.close()

    def _lose(self, name: str, error: EdgekdError) -> None:
        self.lost[name] = str(error)
        if self.gone is None:
            try:
                self.transport.probe()
            except DeviceError as gone:
                self.gone = str(gone)
        if self.gone is not None:
            self.lost = {other: self.lost.get(other, self.gone) for other in self.subjects}

    def fresh(self, runtime: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """A process of its own, and its answer."""
        command = runners.command(self.device, runtime)
        done = self.transport.exec(command, stdin=_line(document) + b"\n", timeout=self.timeout)
        return parsed(done.stdout, done.stderr, done.code)

    def _answer(self, step: Step) -> dict[str, Any]:
        runtime = self.subjects[step.subject].runtime
        if step.kind in schedule.FRESH:
            return self.fresh(runtime, step.document)
        if step.kind == "time":
            self.workers[step.subject] = self.transport.open(runners.command(self.device, runtime))
        seconds = step.document.get("max_seconds", 0) if step.kind == "sustained" else 0
        answer = self.workers[step.subject].ask(_line(step.document), timeout=self.timeout + seconds)
        return parsed(answer, b"", 0)

    def _fold(self, step: Step, answer: Mapping[str, Any]) -> None:
        record = self.records[step.length][step.subject]
        if step.kind in ("memory", "load", "time"):
            record.load_ns.append(answer["load_ns"])
            record.first_inference_ns.append(answer["first_inference_ns"])
            record.observed = answer["observed"]
            record.memory = answer.get("memory", record.memory)
        elif step.kind == "block":
            record.blocks.append({"position": step.position, **answer})
        elif step.kind == "golden":
            record.golden += answer["logits"]
        elif step.kind == "test":
            record.test += answer["logits"]
        elif step.kind == "profile":
            record.operators = list(answer["operators"])
        else:
            record.sustained = dict(answer)


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()


def parsed(stdout: bytes, stderr: bytes, code: int) -> dict[str, Any]:
    """The runner's document, the last line of its stdout; raises DeviceError where it is an error or none."""
    lines = stdout.decode(errors="replace").strip().splitlines()
    try:
        document = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        said = " | ".join(stderr.decode(errors="replace").strip().splitlines())[-400:] or "(it said nothing)"
        raise DeviceError(f"the runner {how} without an answer: {said}") from None
    if not isinstance(document, dict) or document.get("schema") != schedule.SCHEMA:
        raise DeviceError(f"the runner does not speak {schedule.SCHEMA}", todo="Install one edgekd on host and device.")
    error = document.get("error")
    if error:
        prefix = "not measured: " if error["kind"] == "unavailable" else "the runner failed: "
        raise DeviceError(prefix + error["message"])
    if missing := _missing(document):
        raise DeviceError(f"the runner's answer lacks {missing}", todo="Install one edgekd on host and device.")
    return document


SPENT = ("samples_ns", "wall_ns", "cpu_ns", "machine_busy_ns", "cpus")
ANSWERS = {
    "block": ("tokens", "warmup", *SPENT),
    "outputs": ("logits",),
    "profile": ("operators",),
    "read": ("token", *SPENT),
    "write": ("tokens", "first_ns", *SPENT),
    "memory": ("memory",),
}
PHASES = {
    "outputs": ("logits",),
    "describe": ("inputs", "load_ns", "observed"),
    "load": ("load_ns", "first_inference_ns", "observed"),
    "memory": ("load_ns", "first_inference_ns", "observed", "memory"),
    "time": ("load_ns", "first_inference_ns", "observed"),
    "write": ("load_ns", "observed"),
}


def _missing(document: Mapping[str, Any]) -> str:
    if "answer" in document:
        needed = ANSWERS.get(str(document["answer"]), ())
    else:
        needed = PHASES.get(str(document.get("phase")), ())
    return ", ".join(name for name in needed if name not in document)
