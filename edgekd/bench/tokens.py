"""The bench stage of students that write text: how long a prompt takes to read, and a token to write.

On every device the runner opens each artefact in a process of its own, which stays; in each block every one of them,
in shuffled order, answers the same question (read a prompt of 16, 128 or 512 tokens; or write, one token after
another), so that whatever slows the machine slows them alike. A sample is one prompt, or one written token. Load and
the first token after it are timed in fresh processes, and peak memory is that of such a process above what it took
before it opened the file. First of all an artefact continues the golden prompts, and its tokens are compared with those
of the Program.

The runner's side is the phase ``write`` of the wire (``runtimes/README.md``).
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekd import measurement, registry
from edgekd.artifact import Artifact, Facts, Inputs, read_json
from edgekd.bench import devices, harness, results, runners, schedule
from edgekd.bench.devices import Device
from edgekd.bench.stage import FILE, visit
from edgekd.bench.transports._contract import Transport
from edgekd.errors import BadInput, DeviceError, EdgekdError
from edgekd.measurement import Measurement
from edgekd.recipe import Bench, Recipe

PROMPTS = (16, 128, 512)
WRITE = 0  # in place of a prompt's length: tokens are written, one after another
WRITTEN = 16  # tokens of a block, and
START = 16  # those before them, where the cache has room for both; at most half of it each
LEAST_PROMPTS = 10  # a prompt is slow: fewer samples than `bench.min_runs` must do
CONTEXT = 1024  # tokens of a cache, where the artefact leaves it to the runtime
SEED = 0
KEPT = ("wall_ns", "cpu_ns", "machine_busy_ns", "cpus")  # of a block, beside its samples


@dataclass
class _Asked:
    """One artefact on one device with what came of it: a block is a runner's answer, by question."""

    target: str
    scheme: str
    artifact: str
    context: int
    golden: Mapping[str, Any]
    tie: float | None  # a lead of a token over the next that may be overturned; None: not known
    model: str = ""  # what the runner opens, and all files by their place on the device
    files: Mapping[str, Path] = field(default_factory=dict)
    blocks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    load_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    observed: Facts = field(default_factory=dict)
    written: Facts = field(default_factory=dict)  # what became of the golden prompts
    error: str | None = None

    @property
    def start(self) -> int:
        """Tokens before those that are written."""
        return min(START, self.context // 2)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """What breaks loses this artefact, and no other."""
        try:
            yield
        except EdgekdError as error:
            self.error = str(error)


def reach(bench: Bench) -> list[Device]:
    """The profiles of the devices; raises BadInput for one that cannot be asked to write text."""
    found = [devices.load(name) for name in bench.devices]
    for device in found:
        if device.transport == "file":
            raise BadInput(
                f"'{device.name}' answers by hand, every question in a process of its own; a text is written in one",
                where="bench.devices",
                todo="Reach it by ssh or adb, leave it out, or use --no-bench.",
            )
    return found


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``measurements.jsonl``; facts as those of ``bench.stage``, and ``tokens_per_second`` in every summary.

    Parents: "student" and "program-<scheme>" (Programs), and the export artefacts under ``<target>-<scheme>``. Raises
    BadInput for a device that cannot write text; one that cannot be reached gives measurements with errors.
    """
    began, bench = time.monotonic(), recipe.bench
    profiles = reach(bench)
    prompt = _long_prompt(inputs["student"])
    names = [name for name in inputs.parents if name not in ("data", "student") and not name.startswith("program-")]
    measured: list[Measurement] = []
    environments: dict[str, Facts] = {}
    total = len(profiles) * len(bench.threads) * (bench.blocks * (len(PROMPTS) + 1) + len(names))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        inputs.progress(min(done, total), total, "blocks")

    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        for device in profiles:
            for threads in bench.threads:
                some = [_asked(inputs, name, Path(scratch)) for name in names if _able(device, inputs[name])]

                def work(
                    transport: Transport, device: Device = device, threads: int = threads, some: Any = some
                ) -> None:
                    _measure(transport, device, some, threads, bench, prompt, tick)

                environment, lost = visit(device, work)
                environments[device.name] = environment
                for one in some:
                    one.error = one.error or lost
                    measured += _measurements(one, device, threads, bench, environment)
                measurement.write(out / FILE, measured)
    of_name = {device.name: device for device in profiles}
    return {
        "summaries": [_told(results.summarise(one, of_name[one.device])) for one in measured],
        "comparisons": results.compare(measured),
        "environments": environments,
        "failed": sorted({f"{one.target}-{one.scheme}: {one.error}" for one in measured if one.error}),
        "lengths": {_name(size): {"tokens": size or 1, "texts": 1} for size in (*PROMPTS, WRITE)},
        "left_out": sorted(name for name in names if not any(_able(device, inputs[name]) for device in profiles)),
        "seconds": round(time.monotonic() - began, 1),
    }


def _able(device: Device, export: Artifact) -> bool:
    """Whether the device can be given the artefact's runtime."""
    return device.runtimes is None or runners.family(export.facts["target"]) in device.runtimes


def _asked(inputs: Inputs, name: str, scratch: Path) -> _Asked:
    facts, path = inputs[name].facts, inputs[name].path
    target, scheme = facts["target"], facts["scheme"]
    golden = read_json(path / "golden.json") if (path / "golden.json").is_file() else {}
    program = inputs.parents.get(f"program-{scheme}")
    range_ = program.facts.get("logit_range") if program else None
    writer: Any = registry.load("generators", target)
    tie = None if range_ is None else 2 * writer.golden_bound(scheme, range_)
    context = min(CONTEXT, int(facts.get("context") or CONTEXT))
    one = _Asked(target, scheme, inputs[name].digest, context, golden, tie)
    with one.trying():
        one.model, one.files = _files(target, path, facts["file"], f"models/{name}", scratch)
    return one


def _files(target: str, folder: Path, file: str, place: str, scratch: Path) -> tuple[str, dict[str, Path]]:
    """What a runner opens, and every file that it needs, by its place below ``place`` on the device."""
    if target == "litert":  # the model alone: tokenizer and template around it are LiteRT-LM's
        inner = scratch / f"{place.replace('/', '-')}.tflite"
        if not inner.is_file():
            inner.write_bytes(registry.load("generators", target).model_of(folder))
        return f"{place}/model.tflite", {f"{place}/model.tflite": inner}
    if target == "onnxruntime":
        found = [*sorted(folder.glob("onnx/*")), folder / "config.json", folder / "generation_config.json"]
        return place, {f"{place}/{one.relative_to(folder).as_posix()}": one for one in found}
    found = [folder / file, *folder.glob(f"{file}.data")]
    return f"{place}/{file}", {f"{place}/{one.name}": one for one in found}


def _long_prompt(program: Artifact) -> list[int]:
    """Real tokens, enough for the longest prompt: the golden ones again and again."""
    golden = read_json(program.file("golden.json"))
    ids = [token for pair in zip(golden["prompts"], golden["tokens"], strict=True) for part in pair for token in part]
    return (ids * (max(PROMPTS) // len(ids) + 1))[: max(PROMPTS)]


def _measure(
    transport: Transport,
    device: Device,
    some: Sequence[_Asked],
    threads: int,
    bench: Bench,
    prompt: Sequence[int],
    tick: Callable[[], None],
) -> None:
    """Ask all of them everything; never raises for what an artefact or its runner does."""

    def opened(one: _Asked) -> _Worker:
        return _Worker(transport, device, one, threads, bench.timeout_seconds)

    for one in some:
        with one.trying():
            _push(transport, device, one)
            for _ in range(max(1, bench.cold_loads)):
                _cold(one, opened(one), prompt)
        tick()
    workers: dict[int, _Worker] = {}
    chance = random.Random(SEED)
    try:
        for one in (one for one in some if not one.error):
            with one.trying():
                workers[id(one)] = opened(one)
                one.written = _continued(one, workers[id(one)], bench.timeout_seconds)
        for size in (*PROMPTS, WRITE):
            able = [one for one in some if not one.error and size <= one.context]
            for one in able:  # untimed
                with one.trying():
                    workers[id(one)].block(size, prompt)
            for number in range(bench.blocks):
                for position, one in enumerate(chance.sample(able, len(able))):
                    if one.error or _enough(one, size, number, bench):
                        continue
                    with one.trying():
                        block = workers[id(one)].block(size, prompt)
                        one.blocks.setdefault(size, []).append({"position": position, **block})
                tick()
    finally:
        for worker in workers.values():
            worker.close()


def _push(transport: Transport, device: Device, one: _Asked) -> None:
    """The runner and the artefact's files; raises what ``_files`` did not find, or the device cannot take."""
    if one.error:
        raise EdgekdError(one.error)
    for place, file in {**runners.files(device, one.target), **one.files}.items():
        transport.push(file, place)


def _enough(one: _Asked, size: int, number: int, bench: Bench) -> bool:
    samples = [sample for block in one.blocks.get(size, []) for sample in block["samples_ns"]]
    seconds = sum(samples) / 1e9
    if seconds >= bench.max_seconds and number >= 3:
        return True
    least = bench.min_runs if size == WRITE else min(bench.min_runs, LEAST_PROMPTS)
    return len(samples) >= least and seconds >= bench.min_seconds


def _cold(one: _Asked, worker: _Worker, prompt: Sequence[int]) -> None:
    """Load, the first token after a short prompt, and peak memory of a fresh process."""
    try:
        first = worker.ask("write", ids=list(prompt[: one.start]), count=1)
        one.memory = worker.ask("memory")["memory"]
        one.load_ns.append(worker.opened["load_ns"])
        one.first_ns.append(first["first_ns"])
        one.observed = worker.opened["observed"]
    finally:
        worker.close()


def _continued(one: _Asked, worker: _Worker, seconds: float) -> Facts:
    """The golden prompts as the device continues them, judged as ``verify/tokens.py`` does; {} where nothing tells.

    ``tokens`` places: ``equal`` to the Program's; ``ties``, where the Program's lead of its token over the next is
    within two bounds; ``differ``. After a tie the Program's token goes on, as far as a runner can be told (an encoder's
    knows the source alone); a prompt with a difference is left there. ``agreement`` is the share that does not differ,
    ``samples`` how many prompts were begun: after so many seconds there are no more (an emulated device).
    """
    if one.tie is None or not one.golden:
        return {}
    counts, samples, began = {"equal": 0, "ties": 0, "differ": 0}, 0, time.monotonic()
    columns = (one.golden[name] for name in ("prompts", "tokens", "margins"))
    for prompt, tokens, margins in zip(*columns, strict=True):
        if time.monotonic() - began > seconds:
            break
        wanted = tokens[: max(0, one.context - len(prompt))]
        at, samples = 0, samples + 1
        while at < len(wanted):
            found = worker.ask("write", ids=[*prompt, *wanted[:at]], count=len(wanted) - at)["tokens"]
            if len(found) != len(wanted) - at:
                raise DeviceError(f"the runner wrote {len(found)} tokens of {len(wanted) - at}")
            same = next((i for i, pair in enumerate(zip(found, wanted[at:], strict=True)) if pair[0] != pair[1]), None)
            counts["equal"] += len(found) if same is None else same
            if same is None:
                break
            at += same + 1
            kind = "ties" if margins[at - 1] <= one.tie else "differ"
            counts[kind] += 1
            if kind == "differ" or one.target == "onnxruntime":
                break
    places = sum(counts.values())
    agreement = 1 - counts["differ"] / places if places else 1.0
    return {"samples": samples, "tokens": places, **counts, "agreement": agreement}


class _Worker:
    """A process on the device with one open artefact; every question may raise DeviceError."""

    def __init__(self, transport: Transport, device: Device, one: _Asked, threads: int, timeout: float) -> None:
        self._worker, self._timeout = transport.open(runners.command(device, one.target)), timeout
        self._start = one.start
        job = {"phase": "write", "runtime": one.target, "model": one.model, "threads": threads, "context": one.context}
        try:
            self.opened = self._told({**job, "cpu_affinity": device.cpu_affinity})
        except BaseException:
            self.close()
            raise

    def ask(self, request: str, **given: Any) -> dict[str, Any]:
        return self._told({"request": request, **given})

    def block(self, size: int, prompt: Sequence[int]) -> dict[str, Any]:
        """One prompt read, or some tokens written."""
        if size == WRITE:
            return self.ask("write", ids=list(prompt[: self._start]), count=min(WRITTEN, self._start))
        return self.ask("read", ids=list(prompt[:size]))

    def close(self) -> None:
        self._worker.close()

    def _told(self, document: Mapping[str, Any]) -> dict[str, Any]:
        line = json.dumps({"schema": schedule.SCHEMA, **document}).encode()
        return harness.parsed(self._worker.ask(line, timeout=self._timeout), b"", 0)


def _measurements(one: _Asked, device: Device, threads: int, bench: Bench, environment: Facts) -> Iterator[Measurement]:
    for size in (*PROMPTS, WRITE):
        if size > one.context:
            continue
        blocks = one.blocks.get(size, [])
        kept = [{name: block[name] for name in ("position", *KEPT)} for block in blocks]
        made = Measurement(
            target=one.target,
            scheme=one.scheme,
            artifact=one.artifact,
            device=device.name,
            runtime=one.target,
            threads=threads,
            tokens=size or 1,
            requested={
                "backend": results.backend(device, one.target),
                "threads": threads,
                "length": _name(size),
                "cpu_affinity": device.cpu_affinity,
                **bench.model_dump(include={"blocks", "min_seconds", "max_seconds"}),
                "min_runs": bench.min_runs if size == WRITE else min(bench.min_runs, LEAST_PROMPTS),
            },
            observed={**one.observed, "tokens": [size or 1], "others_share": results.others_share(kept)},
            load_ns=tuple(one.load_ns),
            first_inference_ns=tuple(one.first_ns),
            latency_ns=tuple(tuple(block["samples_ns"]) for block in blocks),
            blocks=tuple(kept),
            memory=one.memory,
            golden=one.written,
            environment={**environment, "emulated": device.emulated},
            error=one.error or (None if blocks else "no sample was taken"),
        )
        yield replace(made, flags=tuple(results.flags(made, device)))


def _name(size: int) -> str:
    return "writing" if size == WRITE else f"prompt of {size}"


def _told(summary: Facts) -> Facts:
    """A summary with its tokens per second."""
    milliseconds = summary["p50_ms"]
    return {**summary, "tokens_per_second": round(1e3 * summary["tokens"] / milliseconds, 2) if milliseconds else None}
