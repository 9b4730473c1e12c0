"""Training against calibration alone, by scheme: how near each comes to the float student on the test split.

    python benchmarks/qad.py RECIPE [--schemes w8a8 w4] [--seeds 3] [--set quantize.steps=250] [--run-dir RUN]

Each seed draws its calibration rows; ``ptq`` stops there, ``qad`` goes on from it, so the two are paired. Nothing of
the test split is used to choose a checkpoint. Printed, by scheme: KL to the float student, mean |logit difference|,
share of equal answers, and the task's own metric, each as the mean over seeds, and the difference of the pairs with
its 95 % t-interval. Models run in PyTorch with the Program's numbers. Of a student that writes text: KL of its tokens,
and its perplexity with the rise above the float student's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from gain import interval

from edgekd import pipeline, recipe, registry
from edgekd.artifact import Facts, Inputs
from edgekd.data.stage import read_split
from edgekd.distill import student as students
from edgekd.quantize import qat_tokens, stage, tokens
from edgekd.quantize import scheme as schemes
from edgekd.tasks._contract import generates
from edgekd.teach import transformers


def main() -> None:
    """Train, compare, and print one JSON document and a Markdown table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("recipe", type=Path)
    arguments.add_argument("--schemes", nargs="+", default=["w8a8", "w8a8-dynamic", "w8", "w4"])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--set", action="append", default=[], dest="sets")
    arguments.add_argument("--run-dir", type=Path, default=Path("runs/qad"))
    arguments.add_argument("--out", type=Path, help="also write the document here")
    asked = arguments.parse_args()
    loaded = recipe.load(asked.recipe, asked.sets)
    result = pipeline.run(loaded, asked.run_dir, until="distill")
    if result.failures:
        raise SystemExit(next(iter(result.failures.values())).line())
    judge = (TokenJudge if generates(registry.load("tasks", loaded.task)) else Judge)(loaded, result)
    rows = []
    for scheme in asked.schemes:
        pairs = []
        for seed in range(asked.seeds):
            pair = {method: judge(scheme, seed, method) for method in ("ptq", "qad")}
            sys.stderr.write(f"{scheme} seed {seed}: {json.dumps(pair)}\n")
            pairs.append(pair)
        names = list(pairs[0]["ptq"])
        gains = {name: interval([pair["qad"][name] - pair["ptq"][name] for pair in pairs]) for name in names}
        rows.append({"scheme": scheme, "pairs": pairs, "qad - ptq": gains})
        text = json.dumps({"recipe": asked.recipe.stem, "sets": asked.sets, "rows": rows}, indent=2) + "\n"
        if asked.out:
            asked.out.write_text(text)
    sys.stdout.write(text + table(rows))


class Judge:
    """Quantizes one student in many ways, and compares each with it on the test split."""

    def __init__(self, loaded: recipe.Recipe, result: pipeline.Result) -> None:
        self.loaded, self.task = loaded, registry.load("tasks", loaded.task)
        self.parents = {name: result.steps[name] for name in ("data", "teach")}
        self.parents["distill"] = distilled = result.steps["distill-student"]
        folder, self.pad_token_id = distilled.path / "model", distilled.facts["pad_token_id"]
        self.student = students.load(folder, transformers.model_class(self.task.AUTO_TASK)).eval()
        self.processor = self.task.processor(folder)
        self.test = read_split(self.parents["data"].path, "test")
        self.encoded = self.task.encode(self.processor, self.test, loaded.data.max_length)
        self.prepare()

    def prepare(self) -> None:
        """What is needed once."""
        self.goal = transformers.predict(self.student, self.task, self.encoded, self.pad_token_id)

    def __call__(self, scheme: str, seed: int, method: str) -> dict[str, float]:
        """How far one Program is from the student."""
        settings = self.loaded.quantize.model_copy(update={"method": method})
        own = self.loaded.model_copy(update={"seed": seed, "quantize": settings})
        inputs = Inputs(parents=self.parents, variant={"scheme": scheme})
        with tempfile.TemporaryDirectory() as folder:
            model, facts = self.quantized(own, inputs, scheme, Path(folder))
        return {**self.compared(model), "step": float(facts["chosen_step"])}

    def quantized(self, own: recipe.Recipe, inputs: Inputs, scheme: str, scratch: Path) -> tuple[Any, Facts]:
        """The student with a Program's numbers, and how it came about."""
        wanted = schemes.get(scheme, own.quantize)
        return stage.quantized(own, inputs, self.task, self.student, self.processor, self.pad_token_id, wanted, scratch)

    def compared(self, model: Any) -> dict[str, float]:
        """Measures on the test split."""
        found, task = transformers.predict(model, self.task, self.encoded, self.pad_token_id), self.task
        metrics = task.metrics(transformers.arrays(found), self.test)
        return {**stage.compared(task, found, self.goal), task.HEADLINE: metrics[task.HEADLINE]}


class TokenJudge(Judge):
    """The same of a student that writes text."""

    def prepare(self) -> None:
        """What is needed once."""
        self.vocabulary = tokens.tokens_of(self.parents["distill"].path / tokens.MODEL)
        self.size = transformers.at_once(self.student, self.loaded.data.max_length)

    def quantized(self, own: recipe.Recipe, inputs: Inputs, scheme: str, scratch: Path) -> tuple[Any, Facts]:
        """The student with a Program's numbers, and how it came about."""
        wanted = schemes.generative(scheme, own.quantize)
        model, facts = tokens.trained(own, inputs, self.task, self.student, wanted, scratch)
        return tokens.convert(model)[0], facts

    def compared(self, model: Any) -> dict[str, float]:
        """Measures on the test split."""
        student, place = self.student.to(transformers.device()), transformers.device()
        found = qat_tokens.compared(model.to(place), student, self.task, self.encoded, self.vocabulary, self.size)
        self.student.cpu()  # where weights are chosen
        return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: PTQ, QAD and the difference of the pairs."""
    names = [name for name in rows[0]["qad - ptq"] if name != "step"]
    lines = ["| scheme | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        cells = []
        for name in names:
            ptq, qad = (sum(pair[way][name] for pair in row["pairs"]) / len(row["pairs"]) for way in ("ptq", "qad"))
            gain = row["qad - ptq"][name]
            cells.append(f"{ptq:.4f} to {qad:.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})")
        lines.append(f"| {row['scheme']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
