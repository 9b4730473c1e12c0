"""Throughput of the teach stage against a bare forward over the same batches, and against naive padded batches.

    python benchmarks/teach.py --teacher FOLDER --data train.csv [--rows 1500] [--rounds 3]

The three take turns. Prints samples per second of each and the two ratios (medians of the rounds).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from edgekd import artifact, isolate, pipeline, recipe, registry
from edgekd.data.stage import SPLITS, read_split
from edgekd.teach import transformers
from edgekd.teach.stage import load_tokenizer


def main() -> None:
    """Measure and print one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--teacher", required=True)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--rows", type=int, default=1500)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    work = Path(tempfile.mkdtemp())
    sets = [f"teacher.model={asked.teacher}", f"data.train={asked.data}", f"data.limit={asked.rows}"]
    made = recipe.parse("{}", overrides=sets)
    data = pipeline.run(made, work / "run", until="data").steps["data"]
    task = registry.load("tasks", made.task)
    examples = [example for split in SPLITS for example in read_split(data.path, split)]
    encoded = task.encode(load_tokenizer(data.path), examples, made.data.max_length)
    model, pad_id = transformers.load_teacher(made.teacher, task.AUTO_TASK), data.facts["pad_token_id"]

    def bare(batches: list[list[int]], length: int | None = None) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                inputs = transformers.pad([encoded[i] for i in batch], pad_id)
                if length:
                    inputs = {k: torch.nn.functional.pad(v, (0, length - v.shape[1])) for k, v in inputs.items()}
                model(**inputs)
        return len(encoded) / (time.perf_counter() - began)

    def stage(number: int) -> float:
        out = work / f"teach{number}"
        out.mkdir()
        inputs = artifact.Inputs({"data": data})
        facts = isolate.function(pipeline.TEACH.run)(made, inputs, out)
        return float(facts["samples_per_second"])

    size = made.teach.batch_size
    by_length = list(transformers.length_batches([len(row["input_ids"]) for row in encoded], size))
    as_read = [list(range(i, min(i + size, len(encoded)))) for i in range(0, len(encoded), size)]
    bare(by_length[:2])
    found: dict[str, list[float]] = {"stage": [], "bare": [], "naive": []}
    for number in range(asked.rounds):
        found["stage"].append(stage(number))
        found["bare"].append(bare(by_length))
        found["naive"].append(bare(as_read, made.data.max_length))
    middle = {name: statistics.median(values) for name, values in found.items()}
    pairs = zip(found["stage"], found["bare"], strict=True)
    result = {
        "samples_per_second": found,
        "stage_of_bare": statistics.median(a / b for a, b in pairs),
        "stage_of_naive": middle["stage"] / middle["naive"],
        "rows": len(encoded),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
