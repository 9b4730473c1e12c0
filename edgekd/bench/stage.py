"""The bench stage: every artefact on every device, beside the teacher and the student, in raw samples.

For each device, thread count and input length (the median and the longest of the test split, real texts; an image has
one size) ``schedule`` says what is asked, ``harness`` asks it, ``results`` says what came of it. A device that cannot
be reached, or a runner that crashes, hangs or has no runtime, becomes a measurement with an error; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd import measurement, registry
from edgekd.artifact import Facts, Inputs
from edgekd.bench import devices, harness, results, schedule, subjects
from edgekd.bench.devices import Device
from edgekd.bench.subjects import Length, Row, Subject
from edgekd.bench.transports._contract import Transport
from edgekd.errors import DeviceError, Environment
from edgekd.measurement import Measurement
from edgekd.recipe import Bench, Recipe

FILE = "measurements.jsonl"
UNREACHABLE = (DeviceError, Environment)  # of one device; the others go on
AFTER = ("load_average", "temperature_c", "thermal_status", "battery_percent")  # what a run may change


@dataclass(frozen=True)
class _Plan:
    """What is measured on every device, and how it is judged."""

    found: Sequence[Subject]
    lengths: Sequence[Length]
    bench: Bench
    task: Any = None
    tests: Mapping[str, tuple[list[Row], list[Any], list[Any]]] = field(default_factory=dict)
    tick: Callable[[], None] = lambda: None

    def on(self, device: Device) -> Sequence[Subject]:
        """The subjects whose runtime the device can be given."""
        return [one for one in self.found if device.runtimes is None or one.runtime in device.runtimes]

    def steps(self, device: Device, threads: int) -> int:
        rows = {name: test[0] for name, test in self.tests.items()}
        return len(schedule.steps(device, threads, self.on(device), self.lengths, self.bench, rows))


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``measurements.jsonl``; facts: ``summaries``, ``comparisons``, ``environments``, ``lengths``, ``failed``.

    Parents: "data", "student" (the float student's Program), the export artefacts under any names and, for the test
    split on the device, "program-<scheme>". Raises BadInput for an unknown device or transport; an unreachable device
    gives measurements with errors.
    """
    began = time.monotonic()
    bench = recipe.bench
    profiles = [devices.load(name) for name in bench.devices]
    task = registry.load("tasks", recipe.task)
    found, data = subjects.of_run(recipe, inputs), inputs["data"].path
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        inputs.progress(min(done, total), total, "passes")

    plans = []
    for seen, some in subjects.by_part(task, found):
        lengths = subjects.choose_lengths(recipe, seen, data, some)
        tests = {}
        if bench.verify == "test":
            exported = [one for one in some if one.reference or one.golden]
            tests = {one.name: subjects.test_rows(recipe, seen, data, one, some) for one in exported}
        plans.append(_Plan(some, lengths, bench, seen, tests, tick))
    total = sum(plan.steps(device, threads) for plan in plans for device in profiles for threads in bench.threads)
    facts = _measured([(device, plan, None) for device in profiles for plan in plans], out)
    measured = {one.name for device in profiles for plan in plans for one in plan.on(device)}
    return {
        **facts,
        "lengths": {
            length.name: {"tokens": length.tokens, "texts": _texts(length)} for plan in plans for length in plan.lengths
        },
        "left_out": sorted({one.name for one in found} - measured),
        "seconds": round(time.monotonic() - began, 1),
    }


def bare(
    path: Path,
    names: Sequence[str],
    bench: Bench,
    out: Path,
    *,
    shapes: Sequence[str] = (),
    samples: Path | None = None,
) -> Facts:
    """A model file that edgekd did not make, on every device: as ``run``, without golden inputs and texts.

    Raises BadInput for a file that is no model, and for a dynamic axis that nobody gave a size.
    """
    subject = subjects.bare(path)
    given = subjects.read_inputs(samples) if samples else None
    plans: list[tuple[Device, _Plan, str | None]] = []
    for device in [devices.load(name) for name in names]:
        try:
            described = _described(device, subject, bench)
        except UNREACHABLE as error:
            plans.append((device, _Plan([subject], [Length("given", 1, {subject.name: []})], bench), str(error)))
            continue
        one, length = subjects.with_inputs(subject, described, given, shapes)
        plans.append((device, _Plan([one], [length], bench), None))
    out.mkdir(parents=True, exist_ok=True)
    return _measured(plans, out)


def _described(device: Device, subject: Subject, bench: Bench) -> list[Facts]:
    transport = registry.load("transports", device.transport).connect(device)
    try:
        return harness.describe(transport, device, subject, bench.timeout_seconds)
    finally:
        transport.close()


def _measured(plans: Sequence[tuple[Device, _Plan, str | None]], out: Path) -> dict[str, Any]:
    """Measure what is planned for each device; the third of a plan is why it cannot be."""
    measurements: list[Measurement] = []
    for device, plan, lost in plans:
        for threads in plan.bench.threads:
            if lost:
                measurements += _judged(device, threads, plan, _lost(device, plan, lost), {})
            else:
                measurements += _on_device(device, threads, plan)
            measurement.write(out / FILE, measurements)  # what is known is kept, whatever comes
    by_name = {device.name: device for device, _, _ in plans}
    return {
        "summaries": [results.summarise(one, by_name[one.device]) for one in measurements],
        "comparisons": results.compare(measurements),
        "environments": {one.device: dict(one.environment) for one in measurements},
        "failed": sorted({f"{one.target}-{one.scheme}: {one.error}" for one in measurements if one.error}),
    }


def _lost(device: Device, plan: _Plan, why: str) -> harness.Records:
    return {length.name: {one.name: harness.Record(error=why) for one in plan.on(device)} for length in plan.lengths}


def _texts(length: Length) -> int:
    return max((len(rows) for rows in length.rows.values()), default=0)


def _on_device(device: Device, threads: int, plan: _Plan) -> list[Measurement]:
    """All measurements of one device at one thread count."""
    rows = {name: test[0] for name, test in plan.tests.items()}
    found: harness.Records = {}

    def work(transport: Transport) -> None:
        some = plan.on(device)
        found.update(harness.measure(transport, device, threads, some, plan.lengths, plan.bench, rows, plan.tick))

    environment, lost = visit(device, work)
    return _judged(device, threads, plan, _lost(device, plan, lost) if lost else found, environment)


def visit(device: Device, work: Callable[[Transport], None]) -> tuple[Facts, str | None]:
    """Reach a device and do the work there: what the device was like, and why the work is not done, or None."""
    try:
        transport: Transport = registry.load("transports", device.transport).connect(device)
    except UNREACHABLE as error:
        return {}, str(error)
    environment: dict[str, Any] = {}
    try:
        environment = dict(transport.probe())
        work(transport)
        after = _after(transport)
    except DeviceError as error:
        return environment, str(error)
    finally:
        transport.close()
    before = environment.pop("load_average", None)
    environment |= {
        "load_average_before": before,
        "load_average_after": after.pop("load_average", None),
        **{f"{name}_after": value for name, value in after.items()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return environment, None


def _after(transport: Transport) -> dict[str, Any]:
    """What the run may have changed; nothing where the device is gone."""
    try:
        found = transport.probe()
    except DeviceError:
        return {}
    return {name: found[name] for name in AFTER if name in found}


def _judged(
    device: Device, threads: int, plan: _Plan, records: Mapping[str, Mapping[str, harness.Record]], environment: Facts
) -> list[Measurement]:
    judged = {}
    for one in plan.on(device):
        answers = [records[length.name][one.name] for length in plan.lengths]
        golden = next((record for record in answers if record.golden), answers[0])
        tested = next((record for record in answers if record.test), answers[0])
        _, encoded, examples = plan.tests.get(one.name, ([], [], []))
        judged[one.name] = {
            "golden": results.golden(one, golden, plan.task),
            "test": results.test(one, tested, plan.task, encoded, examples),
        }
    return [
        results.measurement(
            device,
            threads,
            one,
            length,
            plan.bench,
            records[length.name][one.name],
            environment,
            judged[one.name],
        )
        for length in plan.lengths
        for one in plan.on(device)
    ]


def probe(device: Device) -> Facts:
    """What a device says of itself; raises DeviceError where it cannot be reached."""
    transport = registry.load("transports", device.transport).connect(device)
    try:
        return dict(transport.probe())
    finally:
        transport.close()
