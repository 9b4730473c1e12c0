"""One made-up run with all that a report can show: passes, failures at the gate, a crash, no runtime."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edgekd.recipe import Gate
from edgekd.report import agreement
from edgekd.report.build import RunFacts
from edgekd.verify import gate

ROWS = 1000
TARGETS = {
    "onnx": 1.0,
    "litert": 2.2,
    "executorch": 0.8,
    "coreml": None,
}  # relative latency; None: no runtime here
METRICS = {"accuracy": 0.912, "macro_f1": 0.905, "ece": 0.021, "teacher_agreement": 0.951}
PROGRAM = agreement.Answers([0, 1, 2], [np.float32([0, 8]), np.float32([3, 1]), np.float32([1, 2])])
STUDENT = agreement.Answers(range(4), [np.float32([0, 9]), np.float32([3, 1]), np.float32([2, 1]), np.float32([5, 6])])
NAMES = [(f"{target}-{scheme}", target, scheme) for target in TARGETS for scheme in ("fp32", "w8a8")]


def same(outputs: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """1.0 where both choose alike."""
    return np.array([float(a.argmax() == b.argmax()) for a, b in zip(outputs, others, strict=True)])


def _summary(target: str, scheme: str, tokens: int, ms: float | None, error: str | None = None) -> dict[str, Any]:
    def times(factor: float) -> float | None:
        return None if ms is None else round(ms * factor, 4)

    return {
        "target": target,
        "scheme": scheme,
        "device": "local",
        "threads": 1,
        "tokens": tokens,
        "fed_tokens": [64] if target == "litert" else [tokens],
        "length": "p50" if tokens == 14 else "max",
        "p50_ms": ms,
        "p50_ci_ms": None if ms is None else [times(0.98), times(1.03)],
        "p90_ms": times(1.1),
        "p99_ms": times(1.4),
        "runs": 0 if ms is None else 300,
        "load_ms": times(30),
        "first_ms": times(2),
        "peak_mb": None if ms is None else (120.0 if scheme == "fp32" else 38.0),
        "stability": None if ms is None else 87.5,
        "backend": None,
        "versions": {},
        "golden": {},
        "flags": ["unstable"] if target == "onnx" and tokens == 14 and scheme == "w8a8" else [],
        "error": error,
    }


def _bench() -> dict[str, Any]:
    summaries = [_summary("teacher", "fp32", n, 8.1 * n / 14) for n in (14, 60)]
    summaries += [_summary("student", "fp32", n, 3.9 * n / 14) for n in (14, 60)]
    comparisons = []
    for target, factor in TARGETS.items():
        for tokens in (14, 60):
            if factor is None:
                for scheme in ("fp32", "w8a8"):
                    summaries.append(_summary(target, scheme, tokens, None, "not measured: no runtime 'coreml' here"))
                continue
            slow = target == "litert"  # its quantized file is slower than its float one
            for scheme, share in (("fp32", 1.0), ("w8a8", 1.3 if slow else 0.4)):
                summaries.append(_summary(target, scheme, tokens, round(2.4 * factor * share * tokens / 14, 4)))
            key = {"target": target, "scheme": "w8a8", "against": "fp32", "device": "local", "threads": 1}
            word, ratio = ("slower", 1.3) if slow else ("faster", 0.4)
            why = "by 30 % in every one of 3 blocks"
            comparisons.append({**key, "tokens": tokens, "verdict": word, "ratio": ratio, "p": 1e-9, "why": why})
    return {
        "summaries": summaries,
        "comparisons": comparisons,
        "environments": {},
        "failed": [],
        "seconds": 100.0,
    }


QUANTIZED = {
    "method": "qad",
    "chosen_step": 150,
    "trace": [{"step": 150, "agreement": 0.9912, "distance": 0.0034}],
    "layers": [{"name": "a", "kind": "w8a8"}, {"name": "b", "kind": "w8a8"}, {"name": "c", "kind": "w8a8-dynamic"}],
    "calibration": {"samples": 512},
    "mixed": {
        "layers": [
            {"name": "c", "distance": 0.02, "drop": 0.01, "extra_bytes": 0},
            {"name": "a", "distance": 0.001, "drop": 0.0, "extra_bytes": 0},
        ],
        "trace": [{"upgraded": n, "extra_bytes": 0, "drop": 0.01 / (n + 1), "distance": 0.02} for n in range(3)],
        "upgraded": ["c"],
        "upgrade": "w8a8-dynamic",
        "reached": True,
        "max_drop": 0.005,
    },
}


def _run() -> RunFacts:
    exports, verifications, verdicts = {}, {}, {}
    bench = _bench()
    lost = ("executorch", "w8a8")
    for rows in (bench["summaries"], bench["comparisons"]):
        rows[:] = [row for row in rows if (row["target"], row["scheme"]) != lost]
    failures = {"export-executorch-w8a8": "export-executorch-w8a8: was killed by signal 11; last lines: (empty log)."}
    for number, (name, target, scheme) in enumerate(NAMES):
        if f"export-{name}" in failures:
            verdicts[name] = gate.failed(failures[f"export-{name}"])
            continue
        size = 17_795_567 if scheme == "w8a8" else 69_708_628
        file = f"model.{target}"
        exports[name] = {
            "target": target,
            "scheme": scheme,
            "file": file,
            "size_bytes": size,
            "fixed_length": False,
        }
        metrics = {**METRICS, "accuracy": 0.912 - 0.001 * number if scheme == "w8a8" else 0.912}
        if target == "coreml" and scheme == "w8a8":
            metrics["accuracy"] = 0.871
        verifications[name] = {
            "target": target,
            "scheme": scheme,
            "samples": 300 if target == "coreml" else ROWS,
            "of": ROWS,
            "metrics": metrics,
            "student_metrics": METRICS,
            "teacher_metrics": {"accuracy": 0.933, "macro_f1": 0.93, "ece": 0.02},
            "parity": {
                "max_abs_delta": 0.07,
                "mean_abs_delta": 0.002,
                "argmax_agreement": 0.998,
                "identical": 0.91,
            },
            "golden": {"max_abs_delta": 0.01, "bound": 0.5, "passed": True},
            "agreement": {"program": 0.998, "teacher": 0.95, "student": 0.99},
            "runtime": {"runtime": target, "version": "1.2.3"},
        }
        mine = [row for row in bench["summaries"] if (row["target"], row["scheme"]) == (target, scheme)]
        pairs = [row for row in bench["comparisons"] if (row["target"], row["scheme"]) == (target, scheme)]
        verdicts[name] = gate.judge(
            Gate(), "accuracy", verifications[name], exports[name], exports.get(f"{target}-fp32"), mine, pairs
        )
    history = [
        entry
        for step in range(50, 501, 50)
        for entry in (
            {"step": step, "epoch": step / 50, "loss": 3.0 / (1 + step / 100)},
            {"step": step, "epoch": step / 50, "eval_accuracy": 0.93 - 0.6 * 2.718 ** (-step / 120)},
        )
    ]
    distilled = {
        "parameters": 17_419_469,
        "shape": {"layers": 3, "hidden_size": 384},
        "metrics": {"validation": METRICS, "test": METRICS},
        "history": history,
        "steps": 500,
        "seconds": 120.0,
    }
    slower = [{**e, "eval_accuracy": e["eval_accuracy"] - 0.04} if "eval_accuracy" in e else e for e in history]
    return RunFacts(
        name="banking",
        created="2026-01-02T03:04:05Z",
        version="0.1.0",
        recipe={"name": "banking", "report": {"title": "Which intent does a customer of a bank have?"}},
        environment={"os": "Linux", "cpus": 2, "packages": {"torch": "2.13"}},
        data={
            "labels": ["card_arrival", "lost_card"],
            "rows": {"train": 9000, "validation": 1000, "test": ROWS},
            "lengths": {"p50": 14, "p90": 30, "max": 60},
            "warnings": ["8 of 9000 train texts were cut to 64 tokens"],
        },
        teach={
            "teacher": {
                "name": "teacher",
                "architecture": "Bert",
                "parameters": 22_742_861,
                "size_bytes": 90_971_444,
            },
            "metrics": {"test": {"accuracy": 0.933, "macro_f1": 0.93, "ece": 0.02}},
        },
        student={"kind": "student", **distilled},
        baseline={
            "kind": "baseline",
            **distilled,
            "metrics": {"test": {**METRICS, "accuracy": 0.874}},
            "history": slower,
        },
        quantize={"fp32": {"method": "none"}, "w8a8": QUANTIZED},
        artifacts=NAMES,
        exports=exports,
        verifications=verifications,
        verdicts=verdicts,
        bench=bench,
        failures=failures,
        agreement={"w8a8": agreement.pairs({"student": STUDENT, "program": PROGRAM, "onnx": PROGRAM}, same)},
    )


@pytest.fixture(scope="session")
def _made() -> RunFacts:
    return _run()


def _of_another_task(run: RunFacts, headline: str, length: str) -> RunFacts:
    """The same run, scored by another metric, its student made of several terms, timed on ``length``."""

    def renamed(metrics: dict[str, Any]) -> dict[str, Any]:
        found = {name: value for name, value in metrics.items() if name == "teacher_agreement"}
        return {headline: metrics["accuracy"], "token_accuracy": 0.98, **found}

    verifications = copy.deepcopy(dict(run.verifications))
    for facts in verifications.values():
        facts |= {name: renamed(facts[name]) for name in ("metrics", "student_metrics", "teacher_metrics")}
        facts["parity"] = {name: facts["parity"][name] for name in ("max_abs_delta", "mean_abs_delta", "identical")}
        del facts["agreement"]["teacher"]
    history = [
        entry
        for step in (50, 100)
        for entry in (
            {"step": step, "loss": 2.0, "hard": 0.5, "forward-kl": 1.5, "forward-kl_gradient_share": 0.8},
            {"step": step, f"eval_{headline}": 0.6 + step / 1000, "eval_distance": 0.1},
        )
    ]
    distilled = {**run.student, "history": history, "metrics": {"test": renamed(run.student["metrics"]["test"])}}
    bench = copy.deepcopy(dict(run.bench or {}))
    for row in (*bench["summaries"], *bench["comparisons"]):
        row["length"] = length
    verdicts = {}
    for name, target, scheme in run.artifacts:
        if name not in verifications:
            verdicts[name] = gate.failed("it was killed")
            continue
        mine, pairs = (
            [row for row in bench[kind] if (row["target"], row["scheme"]) == (target, scheme)]
            for kind in ("summaries", "comparisons")
        )
        verdicts[name] = gate.judge(
            Gate(min_teacher_agreement=0.9),
            headline,
            verifications[name],
            run.exports[name],
            run.exports[f"{target}-fp32"],
            mine,
            pairs,
        )
    return dataclasses.replace(
        run,
        headline=headline,
        verdicts=verdicts,
        failures={},
        verifications=verifications,
        bench=bench,
        data={
            **run.data,
            "labels": [],
            "lengths": {},
            "augmentation": {"copies": 2, "made": 17993, "dropped": 7, "methods": {"delete": 10000, "splice": 7993}},
        },
        teach={
            "teacher": {**run.teach["teacher"], "members": [{"name": "a second one", "weight": 0.5}]},
            "metrics": {"test": renamed(run.teach["metrics"]["test"])},
        },
        student={
            **distilled,
            "rows": {"train": 9000, "augmented": 18000},
            "vocabulary": {
                "kept": 5321,
                "of": 30522,
                "texts": 400,
                "same": 0.97,
                "more_pieces": 0.025,
                "unknown": 0.005,
            },
            "terms": [
                {"name": "hard", "weight": None, "value": 0.5, "gradient_share": 0.2},
                {"name": "forward-kl", "weight": 1.0, "value": 1.5, "gradient_share": 0.8},
            ],
        },
        baseline={**distilled, "kind": "baseline"},
    )


@pytest.fixture
def run(_made: RunFacts) -> RunFacts:
    return copy.deepcopy(_made)


@pytest.fixture
def of_another_task() -> Callable[..., RunFacts]:
    """``of_another_task(run, headline, length)``: see above."""
    return _of_another_task
