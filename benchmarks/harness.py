"""Whether the native runners add to what they measure: against a bare loop, LiteRT's own tool and a bare Python loop.

    python benchmarks/harness.py [--onnx model.onnx] [--litert model.tflite] [--tokens 32] [--rounds 10] [--runs 100]

overhead  a model that does nothing, through the runner's timed loop: nanoseconds per inference that stand in a sample
          (the two clock readings) and that the loop takes in all, above a bare C++ loop around the same nothing in the
          same process. Goal: below 5 microseconds.
onnx      p50 of the native runner against a bare loop over onnxruntime's InferenceSession.run in this process.
litert    p50 of the native runner against ``ai_edge_litert.tools.benchmark_litert_model``. The tool feeds random
          numbers that are no token ids and stop a model with a word table: it is made to feed ones, and timed as it is.

Both sides of a comparison take turns, round by round, in an order that changes, so that a loaded machine slows both.
Printed as one JSON document: the ratios of the rounds' medians, native to other, their mean and its 95 % t-interval.
Goal: the native runner adds no more than 3 %. (It may be quicker than the Python loop: that calls another build of
ONNX Runtime, the one inside the Python module.) Times of a loaded machine say nothing of the models; the ratios do.
The runners have to be built: ``python runtimes/linux/build.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy import stats

from edgekd import registry

SCHEMA = "edgekd/runner/1"
NATIVE = registry.folder("runtimes") / "linux"
OVERHEAD_GOAL_NS = 5000
RATIO_GOAL = 0.03
TOOL = """
import numpy
from ai_edge_litert.tools import benchmark_litert_model as tool
def ones(buffer, detail):
    buffer.write(numpy.ones(detail["shape"], tool.get_numpy_dtype(detail.get("dtype", "float32"))))
tool.fill_random_input = ones
tool.main()
"""


class Worker:
    """A native runner in the phase ``time``."""

    def __init__(
        self, runner: Path, runtime: str, model: Path, rows: list[Any], lengths: list[int], **more: Any
    ) -> None:
        self.process = subprocess.Popen(
            [runner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        job = {"phase": "time", "runtime": runtime, "model": str(model), "threads": 1, "rows": rows}
        self.rows, self.ready = rows, self.ask(**job, fixed_lengths=lengths, **more)

    def ask(self, **document: Any) -> dict[str, Any]:
        """One line there, one line back; ends the benchmark where it is an error."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"schema": SCHEMA, **document}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        if "error" in answer:
            sys.exit(f"the native runner failed: {answer['error']['message']}")
        return answer

    def block(self, runs: int, warmup: int) -> dict[str, Any]:
        """Exactly ``runs`` timed inferences."""
        return self.ask(
            request="block",
            rows=self.rows,
            warmup_runs=warmup,
            warmup_seconds=0,
            min_runs=runs,
            min_seconds=0,
            max_seconds=600,
        )

    def p50_ms(self, runs: int) -> float:
        """Median of a block, after a tenth as many runs to warm up."""
        samples: list[int] = self.block(runs, runs // 10)["samples_ns"]
        return statistics.median(samples) / 1e6

    def close(self) -> None:
        """End of its stdin: it leaves."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def main() -> None:
    """Compare what is asked for, and print one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--onnx", type=Path, help="a model of input_ids and attention_mask of any length")
    arguments.add_argument("--litert", type=Path, help="the same with one fixed length")
    arguments.add_argument("--tokens", type=int, default=32, help="length of the row (default: 32)")
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--runs", type=int, default=100, help="timed inferences of a side in a round")
    arguments.add_argument("--build", type=Path, default=NATIVE / "build", help="where build.py put the runners")
    asked = arguments.parse_args()
    document: dict[str, Any] = {"overhead": overhead(asked.build)}
    if asked.onnx:
        document["onnx"] = onnx(asked)
    if asked.litert:
        document["litert"] = litert(asked)
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def overhead(build: Path, runs: int = 200_000) -> dict[str, Any]:
    """What the loop adds to an inference of nothing, in nanoseconds."""
    spec = importlib.util.spec_from_file_location("packages", NATIVE / "packages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    headers = module.fetch(module.JSON, "any", build / "packages").headers
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-O3", "-std=c++17", '-DEDGEKD_RUNTIME="overhead"', *(f"-I{one}" for one in headers)]
        for sources, target in (
            (("core.cc", "engine.cc", "machine.cc"), ["-rdynamic", "-o", "runner"]),
            (("overhead.cc",), ["-shared", "-fPIC", "-o", "runtime.so"]),
        ):
            paths = [str(NATIVE / "native" / one) for one in sources]
            subprocess.run(["g++", *flags, *paths, *target, "-ldl"], cwd=folder, check=True)
        model = Path(folder) / "nothing"
        model.touch()
        worker = Worker(Path(folder) / "runner", "overhead", model, _rows(4), [])
        block = worker.block(runs, 1000)
        [bare] = worker.ask(request="profile", rows=worker.rows, runs=runs)["operators"]
        worker.close()
    in_all = block["wall_ns"] / runs - bare["ns"]
    return {
        "sample_p50_ns": statistics.median(block["samples_ns"]),
        "loop_ns": round(in_all, 1),
        "bare_ns": round(bare["ns"], 2),
        "goal_ns": OVERHEAD_GOAL_NS,
        "met": in_all < OVERHEAD_GOAL_NS,
    }


def onnx(asked: argparse.Namespace) -> dict[str, Any]:
    """The native runner and a bare Python loop, both with the runner's settings."""
    import numpy as np
    import onnxruntime

    rows = _rows(asked.tokens)
    worker = Worker(_runner(asked.build, "onnx"), "onnx", asked.onnx, rows, [])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", worker.ready["observed"]["x64quantprecision"])
    session = onnxruntime.InferenceSession(str(asked.onnx), options, providers=["CPUExecutionProvider"])
    inputs = {name: np.asarray([values], dtype=np.int64) for name, values in rows[0].items()}

    def bare(runs: int) -> float:
        samples = []
        for number in range(runs + runs // 10):
            before = time.perf_counter_ns()
            session.run(None, inputs)
            if number >= runs // 10:
                samples.append(time.perf_counter_ns() - before)
        return statistics.median(samples) / 1e6

    found = compare(worker.p50_ms, bare, asked.rounds, asked.runs)
    worker.close()
    return found


def litert(asked: argparse.Namespace) -> dict[str, Any]:
    """The native runner and the tool in LiteRT's own package."""
    worker = Worker(_runner(asked.build, "litert"), "litert", asked.litert, _rows(asked.tokens), [asked.tokens])
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-c", TOOL, f"--model={asked.litert}"]
        command += ["--num_threads=1", f"--result_json={result}"]

        def tool(runs: int) -> float:
            done = subprocess.run(
                [*command, f"--num_runs={runs}", f"--warmup_runs={max(1, runs // 10)}"], capture_output=True, text=True
            )
            if done.returncode != 0:
                sys.exit(f"LiteRT's tool failed: {done.stderr[-1000:]}")
            return _median_ms(json.loads(result.read_text()))

        found = compare(worker.p50_ms, tool, asked.rounds, asked.runs)
    worker.close()
    return found


def _median_ms(document: Any) -> float:
    """The tool's ``median_ms``, wherever its document has it."""
    if isinstance(document, dict):
        if "median_ms" in document:
            return float(document["median_ms"])
        return next(iter(filter(None, map(_median_ms, document.values()))), 0.0)
    return 0.0


def compare(ours: Callable[[int], float], other: Callable[[int], float], rounds: int, runs: int) -> dict[str, Any]:
    """Medians in turns, milliseconds; one round that does not count goes first."""
    ours(runs), other(runs)
    pairs = []
    for number in range(rounds):
        if number % 2:
            theirs, own = other(runs), ours(runs)
        else:
            own, theirs = ours(runs), other(runs)
        pairs.append((own, theirs))
    ratios = [own / theirs for own, theirs in pairs]
    mean = statistics.mean(ratios)
    half = stats.t.ppf(0.975, rounds - 1) * statistics.stdev(ratios) / rounds**0.5 if rounds > 1 else float("nan")
    return {
        "native_p50_ms": round(statistics.median(own for own, _ in pairs), 4),
        "other_p50_ms": round(statistics.median(theirs for _, theirs in pairs), 4),
        "ratios": [round(one, 4) for one in ratios],
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_mean": round(mean, 4),
        "interval": [round(float(mean - half), 4), round(float(mean + half), 4)],
        "goal": RATIO_GOAL,
        "met": statistics.median(ratios) - 1 <= RATIO_GOAL,
    }


def _rows(tokens: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [1 + number % 90 for number in range(tokens)], "attention_mask": [1] * tokens}]


def _runner(build: Path, runtime: str) -> Path:
    import platform

    path = build / platform.machine().lower().replace("amd64", "x86_64") / runtime / "runner"
    if not path.is_file():
        sys.exit(f"{path} is not built; build it: python runtimes/linux/build.py --runtime {runtime}")
    return path


if __name__ == "__main__":
    main()
