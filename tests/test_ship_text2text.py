"""Translation through the whole pipeline, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from _pairs import PAIRS, folder, table

from edgekd import pipeline, recipe
from edgekd.data.stage import read_split
from edgekd.errors import BadInput

SECTIONS: dict[str, Any] = {
    "task": "text2text-generation",
    "data": {"max_length": 48},
    "distill": {
        "student": {"layers": 1}, "max_steps": 40, "batch_size": 8, "learning_rate": 3e-3, "temperature": 1.0,
        "evaluate_every": 100,
    },
    "quantize": {"schemes": ["w8", "w4"], "steps": 12, "evaluate_every": 6, "batch_size": 8, "learning_rate": 3e-4},
    "export": {"targets": ["onnxruntime"]},
    "gate": {"min_teacher_ratio": None, "not_slower": False},
    "bench": {"blocks": 2, "min_seconds": 0.01, "cold_loads": 1, "min_runs": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    for kind in ("marian", "t5"):
        folder(out / kind, kind)
    table(out / "train.jsonl", PAIRS[:120])
    table(out / "test.jsonl", PAIRS[120:160])
    table(out / "sources.jsonl", [{"source": one["source"]} for one in PAIRS[150:200]])
    return out


def recipe_of(world: Path, kind: str = "marian", **sections: Any) -> recipe.Recipe:
    data = {"train": str(world / "train.jsonl"), "test": str(world / "test.jsonl")}
    made = {"teacher": {"model": str(world / kind)}, **SECTIONS, **sections}
    made["data"] = SECTIONS["data"] | data | sections.get("data", {})
    return recipe.parse(json.dumps(made))


@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_a_student_comes_nearer_to_its_teacher(world: Path, kind: str, tmp_path: Path) -> None:
    result = pipeline.run(recipe_of(world, kind), tmp_path / "run", until="distill")
    student, baseline = (result.facts(f"distill-{one}") for one in ("student", "baseline"))
    assert student and baseline and student["shape"]["layers"] == student["shape"]["decoder_layers"] == 1
    mine, theirs = (one["metrics"]["validation"]["distance"] for one in (student, baseline))
    assert mine < 0.8 * theirs
    told = student["metrics"]["test"]
    assert {"perplexity", "token_accuracy", "teacher_agreement", "rouge_l", "exact_match"} <= told.keys()
    assert result.facts("teach")["knowledge"] == ["logits", "top:64"]  # type: ignore[index]


def test_a_student_learns_what_its_teacher_writes(world: Path, tmp_path: Path) -> None:
    """Sources without a target are answered too, but none that is held out; the baseline keeps the data's targets."""
    data = {"unlabelled": str(world / "sources.jsonl")}
    with pytest.raises(BadInput, match="no target"):
        pipeline.run(recipe_of(world, data=data), tmp_path / "silent", until="teach")
    made = recipe_of(world, data=data, teach={"answers": "beam:2"})
    result = pipeline.run(made, tmp_path / "run", until="distill")
    teach = result.steps["teach"].path
    answered, given = read_split(teach, "train"), read_split(result.steps["data"].path, "train")
    assert [one["source"] for one in answered] == [one["source"] for one in given]
    assert [one["target"] for one in answered] != [one["target"] for one in given]
    extra = read_split(teach, "unlabelled")
    held = {one["source"] for name in ("test", "validation") for one in read_split(result.steps["data"].path, name)}
    assert len(extra) == 40 and not held & {one["source"] for one in extra}
    facts = result.facts("distill-student")
    assert facts["rows"] == {"train": len(given), "unlabelled": 40}  # type: ignore[index]
    assert {one["name"] for one in facts["terms"]} == {"hard", "forward-kl"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"export": {"targets": ["gguf"]}}, "gguf is for text-generation.*onnxruntime"),
        ({"distill": {"student": {"hidden_size": 32}}}, "cut by layers alone"),
        ({"distill": {"student": {"vocabulary": 0.9}}}, "cut by layers alone"),
        ({"quantize": {"schemes": ["w8a8-dynamic"]}}, "does not accept w8a8-dynamic"),
        ({"teach": {"members": [{"model": "m"}]}}, "several teachers"),
        ({"teacher": {"endpoint": {"base_url": "http://localhost", "model": "m"}, "model": "m"}}, "endpoint"),
    ],
)
def test_what_cannot_be_is_refused_when_the_plan_is_made(world: Path, sections: Any, message: str) -> None:
    with pytest.raises(BadInput, match="(?s)" + message):
        pipeline.steps(recipe_of(world, **sections))


def test_other_tasks_refuse_what_is_for_pairs(world: Path) -> None:
    one = json.dumps({"teacher": {"model": "m"}, "data": {"train": "x.csv"}, "teach": {"answers": "greedy"}})
    with pytest.raises(BadInput, match="no source to answer"):
        pipeline.steps(recipe.parse(one))
    text = {
        "task": "text-generation",
        "teacher": {"model": "m"},
        "data": {"train": "x.txt"},
        "quantize": {"schemes": []},
    }
    with pytest.raises(BadInput, match="onnxruntime is for text2text-generation"):
        pipeline.steps(recipe.parse(json.dumps(text | {"export": {"targets": ["onnxruntime"]}})))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_it_ships(world: Path, kind: str, tmp_path: Path, edgekd: Any) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe.dump(recipe_of(world, kind)))
    said = edgekd("ship", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run", "--json", timeout=1500)
    report = said.json
    assert {one["name"] for one in report["artifacts"]} == {f"onnxruntime-{one}" for one in ("fp32", "w8", "w4")}
    for one in report["artifacts"]:
        assert one["faithful"]["numbers"]["missing"] == [] and one["golden"]["passed"], one
        assert one["faithful"]["invariance"]["passed"] and "rouge_l" in one["metrics"], one
        assert {row["length"] for row in one["latencies"]} == {"prompt of 16", "prompt of 128", "writing"} | (
            {"prompt of 512"} if kind == "t5" else set()
        )
    assert (tmp_path / "run" / "report.html").is_file()
