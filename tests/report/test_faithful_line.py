"""The faithfulness of an artefact in the report: one line, and a mark where integers run as floats."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from edgekd.report import build, render
from edgekd.report.build import RunFacts


def facts(integer: int | None = 14, missing: tuple[str, ...] = ()) -> dict[str, Any]:
    way = {"examples": 8, "largest": 0.0123, "quartile": 0.0, "identical": 0.9}
    limits = {"bound": 0.2, "quartile_bound": 1e-4, "passed": True}
    told = None if integer is None else integer == 14
    return {
        "numbers": {"numbers": 22713216, "arrays": 44, "activation_scales": 60, "unproven": 0, "missing": [*missing]},
        "invariance": {"padded": way, "neighbours": None, "largest": 0.0123, "quartile": 0.0, **limits},
        "kernels": {
            "integer": integer,
            "float": None if integer is None else 14 - integer,
            "how": "optimised graph",
            "names": {},
            "wanted": 14,
            "accelerated": told,
        },
        "size": {"bytes": 23_000_000, "expected": 22_800_000, "limit": 23_500_000},
    }


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            facts(),
            "22,713,216 numbers found bit for bit; 14 of 14 integer layers run in integers; padding and neighbours "
            "move outputs by 1.230\u00a0% of their range; 23,000,000 of at most 23,500,000 bytes",
        ),
        (facts(3), "3 of 14 integer layers run in integers; not accelerated"),
        (facts(None), "cannot tell how many of 14 integer layers run in integers; padding"),
        (facts(missing=("a", "b")), "2 arrays not found"),
    ],
)
def test_the_line(run: RunFacts, found: dict[str, Any], line: str) -> None:
    run.verifications["onnx-w8a8"]["faithful"] = found
    document = build.document(run)
    jsonschema.validate(document, build.schema())
    page, text = render.html(document), render.markdown(document)
    assert line in page and line in text
    marked = "<small>not accelerated</small>" in page
    assert marked is (found["kernels"]["accelerated"] is False)


def test_without_facts_there_is_no_line(run: RunFacts) -> None:
    document = build.document(run)
    assert all(entry["faithful"] is None for entry in document["artifacts"])
    assert "In the file:" not in render.html(document)


def test_what_an_artefact_writes_stands_beside_the_students_texts() -> None:
    entry = {"metrics": {"bleu": 31.24, "rouge_l": 0.5}, "student_metrics": {"bleu": 32.0, "rouge_l": 0.51}}
    nbsp = render.NBSP
    told = f"BLEU 31.2, the student's 32.0; ROUGE-L 50.0{nbsp}%, the student's 51.0{nbsp}%"
    assert render.written(entry) == told
    assert render.written({"metrics": None, "student_metrics": None}) == ""
