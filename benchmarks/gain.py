"""What each way of distilling adds to a student trained without a teacher: method x data set x gain, with intervals.

    python benchmarks/gain.py RECIPE [RECIPE ...] [--steps 4000] [--seeds 3] [--methods "logits; logits + features"]

Every method trains the recipe's student for the same number of steps from the same teacher's cache, with the training
seeds 0, 1, ..; ``baseline`` is the same student on the labels alone. Printed: the mean test metric, and the mean over
seeds of (method - baseline of that seed) with its 95 % t-interval. Negative results are rows like any other. Steps
that are made already are not made again, so a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from scipy import stats

from edgekd import pipeline, recipe, registry

LOGITS = {"loss": "forward-kl"}
FEATURES = [{"loss": "hidden-mse", "weight": 5, "pool": "cls"}]
RELATIONS = [{"loss": "rkd-distance", "weight": 1, "pool": "cls"}, {"loss": "rkd-angle", "weight": 2, "pool": "cls"}]
METHODS: dict[str, dict[str, Any]] = {
    "logits": {"distill.losses": [LOGITS], "data.augment.copies": 0},
    "logits + features": {"distill.losses": [LOGITS, *FEATURES], "data.augment.copies": 0},
    "logits, transfer text": {"distill.losses": [LOGITS]},
    "logits + features, transfer text": {"distill.losses": [LOGITS, *FEATURES]},
    "logits + relations, transfer text": {"distill.losses": [LOGITS, *RELATIONS]},
    "mse of logits, transfer text": {"distill.losses": [{"loss": "mse"}]},
}


def main() -> None:
    """Train, compare, and print one JSON document and a Markdown table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("recipes", nargs="+", type=Path)
    arguments.add_argument("--steps", type=int, default=4000)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--methods", help="some of: " + "; ".join(METHODS))
    arguments.add_argument("--runs", type=Path, default=Path("runs/gain"))
    arguments.add_argument("--out", type=Path, help="also write the document here")
    asked = arguments.parse_args()
    names = asked.methods.split(";") if asked.methods else list(METHODS)
    rows = [row for path in asked.recipes for row in compare(path, [name.strip() for name in names], asked)]
    document = json.dumps({"steps": asked.steps, "seeds": asked.seeds, "rows": rows}, indent=2) + "\n"
    if asked.out:
        asked.out.write_text(document)
    sys.stdout.write(document + table(rows))


def compare(path: Path, methods: list[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per method for one recipe."""
    folder = asked.runs / path.stem
    headline = registry.load("tasks", recipe.load(path).task).HEADLINE

    def train(values: dict[str, Any], seed: int, kind: str) -> float:
        fixed = {"distill.seed": seed, "distill.max_steps": asked.steps, "distill.baseline": kind == "baseline"}
        sets = [f"{name}={json.dumps(value)}" for name, value in {**fixed, **values}.items()]
        made = recipe.load(path, sets)
        sys.stderr.write(f"{path.stem}: {kind} seed {seed} {values}\n")
        facts = pipeline.run(made, folder, until="distill").facts(f"distill-{kind}")
        assert facts is not None
        return float(facts["metrics"]["test"][headline])

    first = METHODS[methods[0]]
    plain = [train(first, seed, "baseline") for seed in range(asked.seeds)]
    rows = [{"data": path.stem, "method": "baseline", "metric": headline, "values": plain}]
    for method in methods:
        values = [train(METHODS[method], seed, "student") for seed in range(asked.seeds)]
        gains = [a - b for a, b in zip(values, plain, strict=True)]
        rows.append(
            {"data": path.stem, "method": method, "metric": headline, "values": values, "gain": interval(gains)}
        )
    return rows


def interval(values: list[float]) -> dict[str, float]:
    """Mean and its 95 % t-interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": float("-inf"), "high": float("inf")}
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, in points (hundredths)."""
    lines = ["| data set | method | metric | gain over the baseline, points (95 %) |", "|---|---|---|---|"]
    for row in rows:
        gain = row.get("gain")
        told = f"{100 * gain['mean']:+.2f} ({100 * gain['low']:+.2f} to {100 * gain['high']:+.2f})" if gain else ""
        metric = f"{row['metric']} {statistics.fmean(row['values']):.4f}"
        lines.append(f"| {row['data']} | {row['method']} | {metric} | {told} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
