"""Text generation through the whole pipeline, in small: a teacher at hand, and one behind an address."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from _language import LINES, model_of, tokenizer

from edgekd import pipeline, recipe

sys.path.insert(0, str(Path(__file__).parent / "teach"))

SECTIONS: dict[str, Any] = {
    "task": "text-generation",
    "distill": {
        "student": {"layers": 1}, "max_steps": 30, "batch_size": 8, "learning_rate": 3e-3, "temperature": 1.0,
        "evaluate_every": 100,
    },
    "quantize": {"schemes": ["w8", "w4"]},
    "export": {"targets": ["onnx"]},
    "gate": {"min_teacher_ratio": None, "not_slower": False},
    "bench": {"blocks": 2, "min_seconds": 0.01, "cold_loads": 1, "min_runs": 4},
}  # fmt: skip


def recipe_of(**sections: Any) -> recipe.Recipe:
    return recipe.parse(json.dumps(SECTIONS | sections))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name, layers in (("teacher", 2), ("student", 1)):
        model_of("qwen3", tokenizer(folder / name), num_hidden_layers=layers).save_pretrained(folder / name)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line * 3}) + "\n" for line in LINES))
    pairs = ({"prompt": f"tell me {i} ", "response": LINES[i]} for i in range(60))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    return folder


@pytest.mark.parametrize("kept", ["top:16", "sampled:16"])
def test_a_student_comes_nearer_to_its_teacher(folder: Path, kept: str, tmp_path: Path) -> None:
    made = recipe_of(
        teacher={"model": str(folder / "teacher")},
        data={"train": str(folder / "text.jsonl"), "max_length": 48},
        teach={"tokens": kept},
    )
    result = pipeline.run(made, tmp_path / "run", until="distill")
    student, baseline = (result.facts(f"distill-{kind}")["metrics"]["test"] for kind in ("student", "baseline"))  # type: ignore[index]
    assert student["teacher_agreement"] > baseline["teacher_agreement"]
    assert result.facts("teach")["knowledge"] == ["logits", kept]  # type: ignore[index]
    assert {one["name"] for one in result.facts("distill-student")["terms"]} == {"hard", "forward-kl"}  # type: ignore[index]


def test_hidden_states_are_compared_beside_the_tokens(folder: Path, tmp_path: Path) -> None:
    terms = [{"loss": "forward-kl", "pool": "output"}, {"loss": "hidden-mse", "layers": "last", "pool": "none"}]
    made = recipe_of(
        teacher={"model": str(folder / "teacher")},
        data={"train": str(folder / "text.jsonl"), "max_length": 48},
        distill=SECTIONS["distill"] | {"losses": terms, "baseline": False},
    )
    result = pipeline.run(made, tmp_path / "run", until="distill")
    history = result.facts("distill-student")["history"]  # type: ignore[index]
    values = [one["hidden-mse"] for one in history if "hidden-mse" in one]
    assert values[-1] > 0 and any("tokens_gradient_share" in one for one in history)


def test_a_student_of_an_endpoint_learns_its_answers(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="openai is not installed (pip install 'edgekd[llm]')")
    from _stub import serving

    with serving() as stub:
        endpoint = {"base_url": stub.url, "model": "big", "max_tokens": 8}
        distill = SECTIONS["distill"] | {"student": {"model": str(folder / "student")}, "max_steps": 60}
        data = {"train": str(folder / "pairs.jsonl"), "max_length": 48}
        made = recipe_of(teacher={"endpoint": endpoint}, data=data, distill=distill)
        result = pipeline.run(made, tmp_path / "run", until="distill")
        asked = len(stub.bodies)
        again = pipeline.run(made, tmp_path / "run", until="distill")
    assert len(stub.bodies) == asked and again.made == []
    facts = result.facts("distill-student")
    assert facts["rows"]["train"] == asked and "hard" in {entry for one in facts["history"] for entry in one}  # type: ignore[index]
    losses = [one["hard"] for one in facts["history"] if "hard" in one]  # type: ignore[index]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("taught", ["model", "endpoint"])
def test_it_ships(folder: Path, taught: str, tmp_path: Path, edgekd: Any) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed (pip install 'edgekd[genai]')")
    from _stub import serving

    with serving() as stub:
        teacher: dict[str, Any] = {"model": str(folder / "teacher")}
        sections: dict[str, Any] = {"data": {"train": str(folder / "text.jsonl"), "max_length": 48}}
        if taught == "endpoint":
            teacher = {"endpoint": {"base_url": stub.url, "model": "big", "max_tokens": 8}}
            sections["data"]["train"] = str(folder / "pairs.jsonl")
            sections["distill"] = SECTIONS["distill"] | {"student": {"model": str(folder / "student")}}
        (tmp_path / "recipe.yaml").write_text(recipe.dump(recipe_of(teacher=teacher, **sections)))
        said = edgekd("ship", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run", "--json", timeout=1500)
    report = said.json
    assert {one["name"] for one in report["artifacts"]} == {"onnx-fp32", "onnx-w8", "onnx-w4"}
    for one in report["artifacts"]:
        assert one["faithful"]["numbers"]["missing"] == [] and one["golden"]["passed"], one
        assert one["samples"]["verified"] == one["samples"]["of"]
        assert {row["length"] for row in one["latencies"]} == {"prompt of 16", "prompt of 128", "writing"}
    assert ("perplexity" in report["teacher"]["metrics"]) == (taught == "model")
    assert (tmp_path / "run" / "report.html").is_file()
    told = edgekd("explain", tmp_path / "run", "onnx-w4", "--json", "--quiet").json["artefacts"]["onnx-w4"]
    found = {row["what"]: row["value"] for row in told}
    assert found["numbers of the Program in the file"] == "all"
    places = 32 * {"model": 20, "endpoint": 12}[taught]  # 32 tokens after each golden prompt
    assert f"0 of {places} differ" in found["tokens written after the golden prompts"]
