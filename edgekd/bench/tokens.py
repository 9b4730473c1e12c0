"""The bench stage of students that write text: how long a prompt takes to read, and a token to write.

Every artefact is opened in a process of its own and stays open; in each block every one of them, in shuffled order,
answers the same question (read a prompt of 16, 128 or 512 tokens; or write, one token after another), so that whatever
slows the machine slows them alike. A sample is one prompt, or one written token. Load and the first token after it are
timed in fresh processes, and peak memory is that of such a process above what it took before it opened the file.

This host is the device: a runner for text on other devices is not written yet, and a recipe that names one is refused.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edgekd import measurement, registry
from edgekd.artifact import Artifact, Facts, Inputs, read_json
from edgekd.bench import devices, results
from edgekd.bench.stage import FILE
from edgekd.errors import BadInput
from edgekd.measurement import Measurement
from edgekd.recipe import Bench, Recipe

PROMPTS = (16, 128, 512)
WRITE = 0  # in place of a prompt's length: tokens are written, one after another
WRITTEN = 16  # tokens of a block
START = 16  # tokens before them
LEAST_PROMPTS = 10  # a prompt is slow: fewer samples than `bench.min_runs` must do
SEED = 0


@dataclass
class _Asked:
    """One artefact with what came of it, by question."""

    target: str
    scheme: str
    artifact: str
    folder: Path
    context: int
    blocks: dict[int, list[list[int]]] = field(default_factory=dict)
    load_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    observed: Facts = field(default_factory=dict)
    error: str | None = None


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``measurements.jsonl``; facts as those of ``bench.stage``, and ``tokens_per_second`` in every summary.

    Parents: "student" (a Program), and the export artefacts under ``<target>-<scheme>``. Raises BadInput for devices
    other than this host.
    """
    began, bench = time.monotonic(), recipe.bench
    profiles = [devices.load(name) for name in bench.devices]
    for profile in profiles:
        if profile.transport != "local":
            raise BadInput(
                f"'{profile.name}' cannot be asked to write text yet",
                where="bench.devices",
                todo="Use local, or --no-bench.",
            )
    prompt = _long_prompt(inputs["student"])
    names = [name for name in inputs.parents if name not in ("data", "student") and not name.startswith("program-")]
    measured: list[Measurement] = []
    environments: dict[str, Facts] = {}
    total = len(profiles) * len(bench.threads) * (bench.blocks * (len(PROMPTS) + 1) + bench.cold_loads)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        inputs.progress(min(done, total), total, "blocks")

    for profile in profiles:
        transport = registry.load("transports", profile.transport).connect(profile)
        environments[profile.name] = dict(transport.probe())
        transport.close()
        for threads in bench.threads:
            some = [_asked(inputs[name]) for name in names]
            _measure(some, threads, bench, prompt, tick)
            for one in some:
                measured += _measurements(one, profile.name, threads, bench, environments[profile.name])
            measurement.write(out / FILE, measured)
    return {
        "summaries": [_told(results.summarise(one)) for one in measured],
        "comparisons": results.compare(measured),
        "environments": environments,
        "failed": sorted({f"{one.target}-{one.scheme}: {one.error}" for one in measured if one.error}),
        "lengths": {_name(size): {"tokens": size or 1, "texts": 1} for size in (*PROMPTS, WRITE)},
        "left_out": [],
        "seconds": round(time.monotonic() - began, 1),
    }


def _asked(export: Artifact) -> _Asked:
    facts = export.facts
    return _Asked(facts["target"], facts["scheme"], export.digest, export.path, int(facts.get("context") or 512))


def _long_prompt(program: Artifact) -> list[int]:
    """Real tokens, enough for the longest prompt: the golden ones again and again."""
    golden = read_json(program.file("golden.json"))
    ids = [token for pair in zip(golden["prompts"], golden["tokens"], strict=True) for part in pair for token in part]
    return (ids * (max(PROMPTS) // len(ids) + 1))[: max(PROMPTS)]


def _measure(some: Sequence[_Asked], threads: int, bench: Bench, prompt: Sequence[int], tick: Any) -> None:
    for one in some:
        for _ in range(max(1, bench.cold_loads)):
            _cold(one, threads, bench.timeout_seconds, prompt)
        tick()
    workers = {id(one): _Worker(one, threads, bench.timeout_seconds) for one in some if not one.error}
    chance = random.Random(SEED)
    try:
        for size in (*PROMPTS, WRITE):
            able = [one for one in some if not one.error and size <= one.context]
            for one in able:  # untimed
                _ask(one, workers[id(one)], size, prompt, bench.timeout_seconds)
            spent = {id(one): 0.0 for one in able}
            for block in range(bench.blocks):
                for one in chance.sample(able, len(able)):
                    if one.error or _enough(one, size, spent[id(one)], block, bench):
                        continue
                    found = _ask(one, workers[id(one)], size, prompt, bench.timeout_seconds)
                    if found:
                        one.blocks.setdefault(size, []).append(found)
                        spent[id(one)] += sum(found) / 1e9
                tick()
    finally:
        for worker in workers.values():
            worker.close()


def _enough(one: _Asked, size: int, seconds: float, block: int, bench: Bench) -> bool:
    if seconds >= bench.max_seconds and block >= 3:
        return True
    runs = sum(map(len, one.blocks.get(size, [])))
    least = bench.min_runs if size == WRITE else min(bench.min_runs, LEAST_PROMPTS)
    return runs >= least and seconds >= bench.min_seconds


def _ask(one: _Asked, worker: _Worker, size: int, prompt: Sequence[int], timeout: float) -> list[int]:
    """Nanoseconds of one block; an artefact that fails is asked no more."""
    question = {"write": WRITTEN, "after": list(prompt[:START])} if size == WRITE else {"read": list(prompt[:size])}
    answer = worker.ask(question, timeout)
    one.error = answer.get("error")
    return list(answer.get("samples_ns", []))


def _cold(one: _Asked, threads: int, timeout: float, prompt: Sequence[int]) -> None:
    if one.error:
        return
    worker = _Worker(one, threads, timeout)
    answer = worker.ask({"write": 1, "after": list(prompt[:START])}, timeout) if not one.error else {}
    memory = worker.ask({"memory": True}, timeout) if not one.error else {}
    worker.close()
    one.error = one.error or answer.get("error")
    if not one.error:
        one.load_ns.append(worker.load_ns)
        one.first_ns.append(answer["first_ns"])
        one.memory = memory


class _Worker:
    """A process with one open artefact."""

    def __init__(self, one: _Asked, threads: int, timeout: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, one.target, str(one.folder), threads), daemon=True)
        self.process.start()
        theirs.close()
        opened = self._wait(timeout)
        one.error = opened.get("error")
        one.observed = opened.get("observed", {})
        self.load_ns = int(opened.get("load_ns", 0))

    def ask(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        try:
            self.pipe.send(question)
        except OSError as error:
            return {"error": f"the process is gone ({error})"}
        return self._wait(timeout)

    def _wait(self, timeout: float) -> dict[str, Any]:
        try:
            if self.pipe.poll(timeout):
                return dict(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join(5)
            return {"error": f"the process ended with {self.process.exitcode}"}
        self.process.kill()
        return {"error": f"no answer in {timeout:g} s"}

    def close(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()


def _serve(pipe: Connection, target: str, folder: str, threads: int) -> None:
    """What a worker does: open the artefact, answer questions until the pipe closes."""
    try:
        import numpy as np

        writer: Any = registry.load("generators", target)
        runner = _runner()
        reset, before = runner._reset_peak(), runner._memory()
        began = time.perf_counter_ns()
        session = writer.open_session(Path(folder), threads=threads)
        pipe.send({"load_ns": time.perf_counter_ns() - began, "observed": session.observed})
        while True:
            question = pipe.recv()
            if "memory" in question:
                pipe.send(runner._above(before, runner._memory(), reset))
                continue
            session.reset()
            began = time.perf_counter_ns()
            logits_V = session.feed(question["read" if "read" in question else "after"])
            read = time.perf_counter_ns() - began
            samples = [read] if "read" in question else []
            for _ in range(question.get("write", 0)):
                began = time.perf_counter_ns()
                logits_V = session.feed([int(np.argmax(logits_V))])
                samples.append(time.perf_counter_ns() - began)
            pipe.send({"samples_ns": samples, "first_ns": read})
    except EOFError:
        return
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})


def _runner() -> Any:
    """The runner for any machine with Python, which knows how memory is measured.

    Not by getrusage: a process that was started by a larger one has that one's peak (Linux).
    """
    file = registry.folder("runtimes") / "linux" / "python" / "edgekd_runner.py"
    spec = importlib.util.spec_from_file_location("edgekd_runner", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def _measurements(one: _Asked, device: str, threads: int, bench: Bench, environment: Facts) -> list[Measurement]:
    found = []
    for size in (*PROMPTS, WRITE):
        if size > one.context:
            continue
        blocks = one.blocks.get(size, [])
        made = Measurement(
            target=one.target,
            scheme=one.scheme,
            artifact=one.artifact,
            device=device,
            runtime=str(one.observed.get("runtime", one.target)),
            threads=threads,
            tokens=size or 1,
            requested={
                "backend": None,
                "threads": threads,
                "length": _name(size),
                **bench.model_dump(include={"blocks", "min_seconds", "max_seconds"}),
                "min_runs": bench.min_runs if size == WRITE else min(bench.min_runs, LEAST_PROMPTS),
            },
            observed={**one.observed, "tokens": [size or 1]},
            load_ns=tuple(one.load_ns),
            first_inference_ns=tuple(one.first_ns),
            latency_ns=tuple(map(tuple, blocks)),
            memory=one.memory,
            environment=environment,
            error=one.error or (None if blocks else "no sample was taken"),
        )
        found.append(replace(made, flags=tuple(results.flags(made))))
    return found


def _name(size: int) -> str:
    return "writing" if size == WRITE else f"prompt of {size}"


def _told(summary: Facts) -> Facts:
    """A summary with its tokens per second."""
    milliseconds = summary["p50_ms"]
    return {**summary, "tokens_per_second": round(1e3 * summary["tokens"] / milliseconds, 2) if milliseconds else None}
