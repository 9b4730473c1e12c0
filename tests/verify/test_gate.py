"""The gate: what fails, what passes, and what cannot be told."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.recipe import Gate
from edgekd.verify import gate


def facts(**change: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "samples": 100,
        "of": 100,
        "metrics": {"accuracy": 0.93},
        "student_metrics": {"accuracy": 0.935},
        "teacher_metrics": {"accuracy": 0.95},
        "golden": {"max_abs_delta": 0.1, "bound": 0.5, "passed": True},
        "agreement": {"program": 0.995, "teacher": 0.96, "student": 0.98},
    }
    return base | change


SMALL = {"scheme": "w8a8", "size_bytes": 25}
FLOAT = {"scheme": "fp32", "size_bytes": 100}
LATENCY = {"device": "local", "threads": 1, "tokens": 14, "p50_ms": 5.0, "peak_mb": 30.0, "flags": []}


def compared(word: str) -> list[dict[str, Any]]:
    return [{"device": "local", "threads": 1, "tokens": 14, "verdict": word}]


def judge(limits: Gate | None = None, **change: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"verify": facts(), "export": SMALL, "sibling": FLOAT, "latency": [LATENCY]}
    values |= {"comparisons": compared("faster")} | change
    return gate.judge(limits or Gate(), "accuracy", **values)


def test_a_length_that_no_golden_example_fits_is_told() -> None:
    golden = {"max_abs_delta": 0.1, "bound": 0.5, "passed": True, "lengths": {"8": 0, "16": 3}}
    (check,) = [one for one in judge(verify=facts(golden=golden))["checks"] if one["name"] == "golden outputs"]
    assert check["passed"] and check["note"].endswith("none of them fits 8 tokens")


def test_a_good_artifact_passes() -> None:
    assert judge()["verdict"] == "pass"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"verify": facts(metrics={"accuracy": 0.92})}, "accuracy drop is 0.015"),
        (
            {"verify": facts(metrics={"accuracy": 0.90}, student_metrics={"accuracy": 0.90})},
            "teacher's is 0.9474",
        ),
        ({"verify": facts(agreement={"program": 0.98, "teacher": 1.0, "student": 1.0})}, "the Program is 0.98"),
        ({"verify": facts(golden={"max_abs_delta": 9.0, "bound": 0.5, "passed": False})}, "golden outputs is 9"),
        ({"export": {"scheme": "w8a8", "size_bytes": 100}}, "size in bytes is 100"),
        ({"comparisons": compared("slower")}, "slower, wanted not slower"),
        ({"latency": [LATENCY | {"flags": ["backend_differs"]}]}, "fell back silently"),
    ],
)
def test_each_check_can_fail(change: dict[str, Any], reason: str) -> None:
    verdict = judge(**change)
    assert verdict["verdict"] == "fail"
    assert any(reason in text for text in verdict["reasons"]), verdict["reasons"]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Gate(p50_ms=4.0), "p50 in ms is 5"),
        (Gate(peak_mb=20.0), "peak memory in MB is 30"),
        (Gate(size_mb=0.00001), "size in MB"),
        (Gate(min_teacher_agreement=0.97), "agreement with the teacher is 0.96"),
    ],
)
def test_budgets(limits: Gate, reason: str) -> None:
    assert any(reason in text for text in judge(limits)["reasons"])


def test_what_was_not_measured_is_neither_passed_nor_failed() -> None:
    verdict = judge(Gate(p50_ms=4.0), latency=[], comparisons=[])
    assert verdict["verdict"] == "pass"
    unknown = {check["name"] for check in verdict["checks"] if check["passed"] is None}
    assert unknown == {"latency", "p50 in ms"}
    assert judge(comparisons=compared("cannot tell"))["verdict"] == "pass"


def test_the_worst_of_several_measurements_counts() -> None:
    assert judge(comparisons=compared("faster") + compared("slower"))["verdict"] == "fail"
    assert judge(Gate(p50_ms=6.0), latency=[LATENCY, LATENCY | {"tokens": 60, "p50_ms": 7.0}])["verdict"] == "fail"


def test_the_float_artifact_is_not_compared_with_itself() -> None:
    names = {check["name"] for check in judge(export=FLOAT, comparisons=[])["checks"]}
    assert "latency" not in names and "size in bytes" not in names


def test_budgets_bind_what_ships_and_not_the_float_artifact_beside_it() -> None:
    limits = Gate(size_mb=0.00005, p50_ms=4.0, peak_mb=20.0)
    alone = judge(limits, export=FLOAT, comparisons=[])
    assert alone["verdict"] == "fail" and len(alone["reasons"]) == 3
    assert judge(limits, export=FLOAT, comparisons=[], reference=True)["verdict"] == "pass"
    wrong = facts(metrics={"accuracy": 0.5})
    assert judge(limits, verify=wrong, export=FLOAT, comparisons=[], reference=True)["verdict"] == "fail"


def test_answers_that_cannot_be_compared_are_not_held_against_it() -> None:
    """Embeddings of a teacher of another width: there is no agreement, and that is said."""
    verdict = judge(Gate(min_teacher_agreement=0.9), verify=facts(agreement={"program": 1.0, "student": 1.0}))
    [check] = [check for check in verdict["checks"] if check["name"] == "agreement with the teacher"]
    assert verdict["verdict"] == "pass"
    assert check["passed"] is None and check["value"] is None and "cannot be compared" in check["note"]


def test_other_metrics_and_images_are_named_as_what_they_are() -> None:
    values = {name: {"span_f1": 0.9} for name in ("student_metrics", "teacher_metrics")}
    image = {"length": "image", "tokens": 1}
    verdict = gate.judge(
        Gate(),
        "span_f1",
        verify=facts(metrics={"span_f1": 0.5}, **values),
        export=SMALL,
        sibling=FLOAT,
        latency=[LATENCY | image],
        comparisons=[compared("slower")[0] | image],
    )
    told = " ".join(verdict["reasons"])
    assert "span_f1 drop is 0.4" in told and "on local, 1 thread, an image" in told
    assert "accuracy" not in str(verdict) and "token" not in told


ON_PHONE = LATENCY | {"device": "phone", "load_ms": 50.0}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"limits": {"p50_ms": 4.0}}, "p50 in ms on phone, 1 thread, 14 tokens is 5, wanted 4"),
        ({"limits": {"peak_mb": 20.0}}, "peak memory in MB on phone"),
        ({"limits": {"load_ms": 40.0}}, "load in ms on phone"),
        ({"limits": {"size_mb": 0.00001}}, "size in MB on phone"),
        ({"golden": {"max_abs_delta": 0.6, "agreement": 1.0}}, "golden outputs on phone is 0.6, wanted 0.5"),
        ({"golden": {"agreement": 0.0, "error": "another shape"}}, "golden outputs on phone is None"),
        ({"test": {"samples": 9, "metrics": {"accuracy": 0.9}}}, "accuracy drop on phone is 0.035"),
        (
            {"test": {"samples": 9, "metrics": {"accuracy": 0.94}, "agreement": 0.9}},
            "agreement with the Program on phone is 0.9",
        ),
    ],
)
def test_a_device_holds_an_artefact_to_its_own_limits_and_answers(row: dict[str, Any], reason: str) -> None:
    verdict = judge(latency=[LATENCY, ON_PHONE | row])
    assert any(reason in text for text in verdict["reasons"]), verdict["reasons"]


def test_an_emulated_device_is_held_to_its_numbers_and_not_to_its_times() -> None:
    slow = ON_PHONE | {"emulated": True, "p50_ms": 900.0, "peak_mb": 900.0, "limits": {"p50_ms": 4.0, "peak_mb": 20.0}}
    assert judge(Gate(p50_ms=6.0, peak_mb=40.0), latency=[LATENCY, slow])["verdict"] == "pass"
    wrong = slow | {"golden": {"max_abs_delta": 0.6, "agreement": 1.0}}
    assert judge(latency=[LATENCY, wrong])["verdict"] == "fail"


def test_limits_are_for_what_ships() -> None:
    tight = ON_PHONE | {"limits": {"p50_ms": 4.0, "size_mb": 0.00001}}
    assert judge(export=FLOAT, latency=[tight], comparisons=[], reference=True)["verdict"] == "pass"
