"""Does the bench tell a real slow-down from none? Identical artefacts, a planted 5 %, and a busy machine.

    python benchmarks/detect.py [--rounds 20] [--seconds 3] [--blocks 40] [--slower 0.05] [--skip-busy]
                                [--markdown FILE]

A round is what the bench does for three artefacts: a fresh worker each on this machine's transport, warm-up, and timed
blocks interleaved in shuffled order; then ``statistics.compare``. Two of the three are copies of one ONNX file; the
third is a copy whose runner is the same runner, made to spin after each inference, inside the timed region, for
``--slower`` of the time that the inference took. All rounds are repeated with a process that burns cycles on every
processor. As in the bench, a machine whose other processes used more than a tenth of its processors is doubted, and
then only large differences get a word; the words of the plain rule are printed beside.

Goals on an idle machine: at most one false word in 20 rounds, 18 of 20 slow-downs found. On a busy one: no wrong word.
Prints one JSON document; the Markdown table goes to ``--markdown`` or stderr. The default takes eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, stdev
from typing import Any

import numpy as np

from edgekd import registry
from edgekd.bench import devices, results, statistics
from edgekd.bench.transports import local
from edgekd.measurement import FLAGS

SCHEMA = "edgekd/runner/1"
TEXTS, LENGTH, WIDTH, LAYERS = 8, 24, 256, 8  # an inference of about half a millisecond
SLOW = '''"""The runner {runner}, each inference {slower:.1%} longer: it spins inside the timed region."""
import dataclasses, importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("edgekd_runner", {runner!r})
runner = importlib.util.module_from_spec(spec)
sys.modules["edgekd_runner"] = runner
spec.loader.exec_module(runner)
made, clock = runner.RUNTIMES["onnx"], time.perf_counter_ns
def slowed(*arguments):
    load = made(*arguments)
    def loaded():
        model = load()
        def call(inputs):
            began = clock()
            outputs = model.call(inputs)
            end = clock()
            end += int({slower!r} * (end - began))
            while clock() < end:
                pass
            return outputs
        return dataclasses.replace(model, call=call)
    return loaded
runner.RUNTIMES["onnx"] = slowed
code = runner.main()
sys.stderr.flush()
os._exit(code)
'''


def main() -> None:
    """Measure, and print one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--seconds", type=float, default=3.0, help="timed, for each artefact of a round")
    arguments.add_argument("--blocks", type=int, default=40)
    arguments.add_argument("--slower", type=float, default=0.05)
    arguments.add_argument("--skip-busy", action="store_true")
    arguments.add_argument("--markdown", type=Path)
    asked = arguments.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgekd-detect-") as name:
        places = prepare(Path(name), asked.slower)
        states = {"as it is": several(places, asked)}
        if not asked.skip_busy:
            burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
            try:
                states["every processor busy"] = several(places, asked)
            finally:
                for one in burners:
                    one.kill()
                    one.wait()
    document = {
        "rounds": asked.rounds,
        "blocks": asked.blocks,
        "seconds_per_artefact": asked.seconds,
        "slower": asked.slower,
        "machine": local.connect(devices.load("local")).probe(),
        "states": states,
        "wall_seconds": round(time.monotonic() - began, 1),
    }
    text = markdown(document)
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")
    else:
        sys.stderr.write(text)
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def prepare(folder: Path, slower: float) -> dict[str, tuple[Path, Path]]:
    """Model and runner of each artefact."""
    runner = registry.folder("runtimes") / "linux" / "python" / "edgekd_runner.py"
    slow = folder / "slow_runner.py"
    slow.write_text(SLOW.format(runner=str(runner), slower=slower), encoding="utf-8")
    write_model(folder / "one.onnx")
    for name in ("other", "slow"):
        shutil.copyfile(folder / "one.onnx", folder / f"{name}.onnx")
    return {name: (folder / f"{name}.onnx", slow if name == "slow" else runner) for name in ("one", "other", "slow")}


def write_model(path: Path) -> None:
    """Embeddings, then layers of a product and a tanh; the sum over tokens of the last one's first three numbers."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(0)
    constants = {"table": chance.normal(size=(64, WIDTH)).astype(np.float32), "axis": np.array([1])}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"], axis=0)]
    for n in range(LAYERS):
        constants[f"w{n}"] = (chance.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        nodes += [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"y{n}"])]
        nodes += [helper.make_node("Tanh", [f"y{n}"], [f"x{n + 1}"])]
    nodes += [helper.make_node("ReduceSum", [f"x{LAYERS}", "axis"], ["logits"], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "detect",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def several(places: Mapping[str, tuple[Path, Path]], asked: argparse.Namespace) -> dict[str, Any]:
    """All rounds in one state of the machine."""
    found = [one_round(places, asked, number) for number in range(asked.rounds)]

    def count(pair: str, rule: str, word: str) -> int:
        return sum(one[pair][rule] == word for one in found)

    words = ("faster", "slower", "cannot tell")
    return {
        "identical": {rule: {word: count("identical", rule, word) for word in words} for rule in ("word", "plain")},
        "slowed": {rule: {word: count("slowed", rule, word) for word in words} for rule in ("word", "plain")},
        "others_share": {"median": median(r["others_share"] for r in found), "rounds_doubted": doubted(found)},
        "median_ms": round(median(one["median_ms"] for one in found), 4),
        "block_noise": round(median(one["block_noise"] for one in found), 4),
        "slowed_ratio": {"median": median(one["slowed"]["ratio"] for one in found)},
        "rounds": found,
    }


def doubted(found: Sequence[Mapping[str, Any]]) -> int:
    """Rounds in which other processes used more than the bench allows."""
    return sum(one["others_share"] > results.OTHERS for one in found)


def one_round(places: Mapping[str, tuple[Path, Path]], asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Three fresh workers, interleaved blocks, two comparisons."""
    chance = random.Random(seed)
    rows = [{"input_ids": [(7 * text + n) % 64 for n in range(LENGTH)]} for text in range(TEXTS)]
    blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
    transport = local.connect(devices.load("local"))
    workers = {}
    try:
        for name, (model, runner) in places.items():
            transport.push(model, f"{name}.onnx")
            transport.push(runner, f"{name}-runner")
            workers[name] = transport.open([sys.executable, f"{name}-runner"])
            job = {"schema": SCHEMA, "phase": "time", "runtime": "onnx", "model": f"{name}.onnx", "threads": 1}
            signature = [{"name": "input_ids", "dtype": "int64"}]
            ask(workers[name], {**job, "rows": rows, "signature": signature})
        for number in range(asked.blocks):
            request = {
                "schema": SCHEMA,
                "request": "block",
                "rows": rows,
                "warmup_runs": 5,
                "warmup_seconds": 0.2 if number == 0 else 0,
                "min_runs": 10,
                "min_seconds": asked.seconds / asked.blocks,
                "max_seconds": 10 * asked.seconds / asked.blocks,
            }
            for name in chance.sample(sorted(places), len(places)):
                blocks[name].append(ask(workers[name], request))
    finally:
        for worker in workers.values():
            worker.close()
        transport.close()
    samples = {name: [block["samples_ns"] for block in some] for name, some in blocks.items()}
    medians = [median(block) for block in samples["one"]]
    share = results.others_share([block for some in blocks.values() for block in some]) or 0.0
    return {
        "others_share": round(share, 3),
        "median_ms": round(median(medians) / 1e6, 4),
        "block_noise": round(stdev(medians) / median(medians), 4),
        "identical": compared(samples["other"], samples["one"], share),
        "slowed": compared(samples["slow"], samples["one"], share),
    }


def compared(a: statistics.Blocks, b: statistics.Blocks, share: float) -> dict[str, Any]:
    """The word that the bench gives, and the one it would give if it did not look at other processes."""
    plain = statistics.compare(a, b)
    told = statistics.compare(a, b, doubt=FLAGS["loaded_machine"]) if share > results.OTHERS else plain
    bounds = [round(bound, 4) for bound in plain.interval or ()]
    return {"word": told.verdict, "plain": plain.verdict, "ratio": round(plain.ratio, 4), "interval": bounds}


def ask(worker: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """One line, and its answer; a runner's error ends the script."""
    answer: dict[str, Any] = json.loads(worker.ask(json.dumps(document).encode(), timeout=120))
    if "error" in answer:
        raise SystemExit(f"the runner failed: {answer['error']['message']}")
    return answer


def markdown(document: Mapping[str, Any]) -> str:
    """A row for each state and pair."""
    columns = ["machine", "pair", "faster", "slower", "cannot tell", "plain rule: faster", "slower", "cannot tell"]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * 6]
    for name, state in document["states"].items():
        for pair in ("identical", "slowed"):
            words = [str(count) for rule in ("word", "plain") for count in state[pair][rule].values()]
            what = "identical" if pair == "identical" else f"{100 * document['slower']:g} % slower"
            lines.append("| " + " | ".join([name, what, *words]) + " |")
    notes = [
        f"{name}: other processes used {state['others_share']['median']:.0%} of the processors (median; "
        f"{state['others_share']['rounds_doubted']} of {document['rounds']} rounds doubted), the medians of blocks "
        f"vary by {state['block_noise']:.1%}, the slowed artefact measured {state['slowed_ratio']['median']:.3f} times"
        for name, state in document["states"].items()
    ]
    return "\n".join([*lines, "", *notes, ""])


if __name__ == "__main__":
    main()
