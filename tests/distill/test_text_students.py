"""Students of language models through the pipeline: cut, trimmed, sized before they are trained, refused early."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _language import LINES, model_of, tokenizer

from edgekd import pipeline, recipe
from edgekd.distill import stage, student
from edgekd.errors import BadInput
from edgekd.generators._contract import check_widths
from edgekd.quantize import scheme


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    for kind in ("qwen3", "qwen2"):
        net = model_of(kind, tokenizer(folder / kind), num_attention_heads=8, intermediate_size=128)
        net.save_pretrained(folder / kind)
    texts = ({"text": line * 3} for line in LINES[:40])
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    for name, some in {"validation": LINES[40:60], "test": LINES[60:100]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in some))
    return folder


def recipe_of(folder: Path, shape: dict[str, Any], kind: str = "qwen3", **sections: Any) -> recipe.Recipe:
    data = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    made = {
        "task": "text-generation",
        "teacher": {"model": str(folder / kind)},
        "data": {**data, "max_length": 48},
        "teach": {"tokens": "top:16"},
        "distill": {
            "student": shape, "max_steps": 50, "batch_size": 8, "learning_rate": 3e-3, "temperature": 1.0,
            "evaluate_every": 100, "baseline": False,
        },
        "quantize": {"schemes": ["w4"]},
        "export": {"targets": ["gguf"]},
    }  # fmt: skip
    return recipe.parse(json.dumps({**made, **sections}))


def test_a_student_of_another_width_and_vocabulary_learns_from_its_teacher(folder: Path, tmp_path: Path) -> None:
    shape = {
        "layers": 1, "hidden_size": 32, "heads": 4, "intermediate_size": 64, "prune": "importance", "vocabulary": 1.0,
    }  # fmt: skip
    result = pipeline.run(recipe_of(folder, shape), tmp_path / "run", until="distill")
    facts: Any = result.facts("distill-student")
    kept = facts["vocabulary"]["kept"]
    assert kept < facts["vocabulary"]["of"] == 400
    wanted = {"layers": 1, "hidden_size": 32, "heads": 4, "intermediate_size": 64, "key_value_heads": 1}
    assert facts["shape"] == {**wanted, "vocab_size": kept}
    told = facts["tokenization"]
    assert told["aligned"] == 1.0 and 0 < told["dropped"] < 1
    assert 0 < told["test"]["same"] <= 1 <= told["test"]["tokens"]
    values = [one["forward-kl"] for one in facts["history"] if "forward-kl" in one]
    assert len(values) > 1 and values[-1] < values[0]
    assert 0 < facts["metrics"]["test"]["teacher_agreement"] <= 1


@pytest.mark.parametrize("online", [False, True])
def test_rows_that_are_cut_otherwise_are_told(folder: Path, online: bool, tmp_path: Path) -> None:
    made = recipe_of(folder, {"vocabulary": 0.9}, teach={"tokens": "sampled:8", "online": online})
    facts: Any = pipeline.run(made, tmp_path / "run", until="distill").facts("distill-student")
    assert 0 < facts["tokenization"]["aligned"] < 1 < facts["tokenization"]["test"]["tokens"]


def test_a_trimmed_student_is_trained_for_its_scheme_with_its_teacher(folder: Path, tmp_path: Path) -> None:
    """Quantization-aware training hears the teacher on the rows that both cut alike."""
    quantize = {"schemes": ["w4"], "method": "qad", "steps": 4, "batch_size": 4, "teacher_weight": 0.5}
    distill = {"student": {"vocabulary": 0.9}, "max_steps": 0}
    result = pipeline.run(recipe_of(folder, {}, distill=distill, quantize=quantize), tmp_path / "run", until="quantize")
    facts: Any = result.facts("quantize-w4")
    assert facts["trace"][0]["step"] == 0 and facts["trace"][-1]["step"] == 4


def test_shapes_that_a_target_could_not_hold_are_refused_when_the_plan_is_made(folder: Path) -> None:
    def plan(shape: dict[str, Any], **more: Any) -> None:
        pipeline.steps(recipe_of(folder, shape, **more))

    plan({"layers": 1, "hidden_size": 32, "heads": 4, "intermediate_size": 96})
    with pytest.raises(BadInput, match=r"gguf .* blocks of 32 inputs; hidden_size makes 48"):
        plan({"hidden_size": 48})
    with pytest.raises(BadInput, match=r"blocks of 32 inputs; heads \(4 of 12\) makes 48"):
        check_widths(model_of("qwen3", 60, head_dim=12).config, 32, "gguf")
    plan({"hidden_size": 48}, quantize={"schemes": []})  # floats have no blocks
    plan({"hidden_size": 48, "heads": 2}, export={"targets": ["onnx", "executorch", "litert", "coreml"]})
    with pytest.raises(BadInput, match="blocks of 16 inputs; intermediate_size makes 100"):
        plan({"intermediate_size": 100}, export={"targets": ["onnx"]})
    plan({"intermediate_size": 100}, export={"targets": ["executorch"]})
    with pytest.raises(BadInput, match=r"do not fill hidden_size 64"):
        plan({"heads": 4}, kind="qwen2")
    plan({"heads": 4, "hidden_size": 32}, kind="qwen2")
    with pytest.raises(BadInput, match="low-rank"):
        plan({"embedding_size": 8})
    with pytest.raises(BadInput, match=r"multiple of 4 .* or of 2"):
        plan({"heads": 3})


def test_words_that_an_endpoint_has_not_said_yet_are_not_counted(folder: Path) -> None:
    teacher = {"model": str(folder / "qwen3"), "endpoint": {"base_url": "http://localhost:1/v1", "model": "big"}}
    with pytest.raises(BadInput, match="cannot be counted"):
        pipeline.steps(recipe_of(folder, {"vocabulary": 1.0}, teacher=teacher))


@pytest.mark.parametrize("tied", [True, False])
def test_the_size_of_a_language_model_is_that_of_its_numbers(tied: bool) -> None:
    """By hand; a tied head is there once, and neither head nor table are below 8 bits."""
    net = model_of("qwen3", 300, tied=tied)
    schemes = scheme.of_task(True)
    assert [one.name for one in schemes] == ["fp32", "w8a8-dynamic", "w8", "w4"]
    found = student.summary(net, schemes, 8)
    layer = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)]
    weights, outputs = 2 * sum(a * b for a, b in layer), 2 * sum(b for _, b in layer)
    norms, tables = 2 * (2 * 64 + 2 * 16) + 64, (1 if tied else 2) * 300
    assert found["parameters"] == weights + norms + 64 * tables and found["embedding_parameters"] == 300 * 64
    words = tables * (64 + 4)
    assert found["size_bytes"] == {
        "fp32": 4 * found["parameters"],
        "w8": weights + 8 * outputs + 4 * norms + words,
        "w8a8-dynamic": weights + 8 * outputs + 4 * norms + words,
        "w4": weights // 2 + 4 * weights // 32 + 4 * norms + words,
    }


def test_a_student_is_described_before_it_is_trained(folder: Path, tmp_path: Path) -> None:
    shape = {"layers": 1, "hidden_size": 32, "prune": "importance", "vocabulary": 1.0}
    made = recipe_of(folder, shape)
    data = pipeline.run(made, tmp_path / "run", until="data").steps["data"]
    found = stage.preview(made, data, [SimpleNamespace(name="fp32", weight_bits=32, embedding_bits=32)])
    assert found["shape"]["vocab_size"] == found["vocabulary"]["kept"] < 400
    assert found["embedding_parameters"] == 32 * found["vocabulary"]["kept"]
    assert found["size_bytes"]["fp32"] == 4 * found["parameters"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", ["gguf", "onnx", "executorch", "litert", "coreml"])
def test_a_cut_and_trimmed_student_ships(folder: Path, target: str, tmp_path: Path) -> None:
    """Widths that only just fill the blocks of each target; the file holds all numbers and writes what they say."""
    from edgekd import registry
    from edgekd.errors import Environment

    writer = registry.load("generators", target)
    unit = max(writer.block, 8)
    shape = {
        "layers": 1, "hidden_size": 3 * unit if unit < 32 else 32, "heads": 4, "intermediate_size": 3 * unit,
        "prune": "importance", "vocabulary": 0.9,
    }  # fmt: skip
    quantize = {"schemes": ["w8", "w4"]}
    made = recipe_of(folder, shape, quantize=quantize, export={"targets": [target]}, gate={"min_teacher_ratio": None})
    result = pipeline.run(made, tmp_path / "run", until="verify")
    lacking = {name: str(error) for name, error in result.failures.items() if isinstance(error, Environment)}
    assert result.failures.keys() == lacking.keys(), result.failures
    for name in quantize["schemes"]:
        if f"export-{target}-{name}" in lacking:
            pytest.skip(lacking[f"export-{target}-{name}"])
        export: Any = result.facts(f"export-{target}-{name}")
        assert export["faithful"]["numbers"] and not export["faithful"]["missing"]
    for name in quantize["schemes"]:
        if f"verify-{target}-{name}" in lacking:
            pytest.skip(lacking[f"verify-{target}-{name}"])
        verdict: Any = result.facts(f"verify-{target}-{name}")
        assert verdict["golden"]["passed"] and verdict["written"]["differ"] == 0, verdict["golden"]
        assert "perplexity" in verdict["teacher_metrics"]
