"""The black-box teacher in a run: which steps it changes, and that no way of paying is in a key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from _language import student as small_model

from edgekd import pipeline, recipe
from edgekd.errors import BadInput
from edgekd.recipe import Recipe
from edgekd.teach.answers import read_answers

pytest.importorskip("openai", reason="openai is not installed (pip install 'edgekd[llm]')")
from _stub import serving


def recipe_of(folder: Path, url: str, **fields: Any) -> Recipe:
    sections = {
        "task": "text-generation",
        "teacher": {"endpoint": {"base_url": url, "model": "big", "max_tokens": 5, **fields}},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 32},
        "distill": {"student": {"model": str(folder / "student")}},
        "quantize": {"schemes": ["w8"]},
        "export": {"targets": ["onnx"]},
    }
    return recipe.parse(json.dumps(sections))


def test_a_raised_budget_goes_on_where_the_run_stopped(tmp_path: Path) -> None:
    small_model(tmp_path / "student")
    rows = [{"prompt": f"question {i}", "response": "?"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with serving() as stub:
        with pytest.raises(BadInput, match="the budget is used up"):
            pipeline.run(recipe_of(tmp_path, stub.url, max_tokens_total=200), tmp_path / "run", until="teach")
        paid = len(stub.bodies)
        raised = recipe_of(tmp_path, stub.url, concurrency=2)
        plan = {one.step.id: (one.status, one.why) for one in pipeline.plan(raised, tmp_path / "run")}
        assert plan["data"][0] == "hit" and plan["teach"] == ("run", "resumes what was interrupted")
        result = pipeline.run(raised, tmp_path / "run", until="teach")
        again = pipeline.run(
            recipe_of(tmp_path, "http://elsewhere/v1", max_cost=1, price_in=1, price_out=1),
            tmp_path / "run",
            until="teach",
        )
    facts, total = result.steps["teach"].facts, result.steps["data"].facts["rows"]["train"]
    assert 0 < paid < total == facts["answers"] and facts["requests"] == total - paid
    assert len(stub.bodies) == len(set(stub.prompts)) == total == len(read_answers(result.steps["teach"].path))
    assert again.made == [] and again.steps["teach"].digest == result.steps["teach"].digest


def test_an_endpoint_for_a_task_that_writes_nothing_is_refused_when_the_plan_is_made(tmp_path: Path) -> None:
    made = recipe_of(tmp_path, "http://host/v1")
    other = recipe.parse(recipe.dump(made), overrides=["task=text-classification", "export.targets=[onnx]"])
    with pytest.raises(BadInput, match="an endpoint teaches tasks that write text, text-classification does not"):
        pipeline.steps(other)
