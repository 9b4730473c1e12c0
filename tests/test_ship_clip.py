"""A dual encoder from YAML: one student, two artefacts, each proven alone and scored with the other tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _pictures import write_clip, write_pictures

from edgekd import artifact, outcome, pipeline, recipe
from edgekd.data.stage import read_split
from edgekd.errors import BadInput
from edgekd.outputs import read_outputs, read_rows
from edgekd.quantize import stage as quantizing
from edgekd.targets import stage as exporting
from edgekd.tasks import zero_shot_image_classification as task
from edgekd.teach.cache import read_logits
from edgekd.verify import stage as verifying

RECIPE = """
name: clip
task: zero-shot-image-classification
teacher: {{model: {folder}/teacher}}
data: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl, max_length: 24}}
distill:
  student: {{layers: 1, vocabulary: 1.0}}
  losses: [{{loss: affinity, pool: output}}, {{loss: cosine, pool: output}}]
  epochs: 2
  batch_size: 32
  learning_rate: 2.0e-3
  checkpoint_every: 5
quantize: {{schemes: [w8a8], method: qad, steps: 2, evaluate_every: 1, batch_size: 8, calibration_samples: 16}}
export: {{targets: {targets}, jobs: 1}}
verify: {{slow_samples: 12}}
bench: {{warmup_runs: 1, warmup_seconds: 0, min_runs: 4, min_seconds: 0, blocks: 2, cold_loads: 1}}
gate: {{min_teacher_ratio: 0.0, not_slower: false, max_accuracy_drop: 0.5}}
"""


def written(folder: Path, targets: str = "[onnx]") -> recipe.Recipe:
    texts = write_pictures(folder, "train", 96, 0)
    write_pictures(folder, "test", 24, 1)
    write_clip(folder / "teacher", texts)
    return recipe.parse(RECIPE.format(folder=folder, targets=targets))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Result:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clip")
    return pipeline.run(written(folder), folder / "run", until="distill")


def sealed(result: pipeline.Result, run: Any, row: pipeline.Stage, step: pipeline.Step) -> artifact.Artifact:
    """One step in this process: the function of its row, and a manifest."""
    path = result.folder / "inside" / step.id
    out = artifact.partial_of(path)
    out.mkdir(parents=True, exist_ok=True)
    parents = {name: result.steps[parent] for name, parent in step.parents.items()}
    facts = run(recipe.View(result.recipe, row.reads), artifact.Inputs(parents, step.variant), out)
    made = artifact.seal(path, stage=step.stage, label=step.label, key="", facts=facts, parents={}, tools={})
    result.steps[step.id] = made
    return made


def test_the_plan_has_a_program_and_an_artefact_of_each_part(distilled: pipeline.Result) -> None:
    ids = [step.id for step in pipeline.steps(distilled.recipe)]
    assert ids[4:8] == [f"quantize-{part}-{scheme}" for part in ("image", "text") for scheme in ("fp32", "w8a8")]
    names = [f"onnx-{part}-{scheme}" for part in ("image", "text") for scheme in ("fp32", "w8a8")]
    assert ids[8:] == [f"{stage}-{name}" for stage in ("export", "verify") for name in names]
    assert outcome.artifacts_of(distilled)[1] == ("onnx-image-w8a8", "onnx-image", "w8a8")
    asked = distilled.recipe.model_copy(update={"bench": distilled.recipe.bench.model_copy(update={"verify": "test"})})
    with pytest.raises(BadInput, match="one of all its artefacts together"):
        pipeline.steps(asked)
    with pytest.raises(BadInput, match="cannot be set for two towers"):
        pipeline.steps(recipe.parse(recipe.dump(distilled.recipe), overrides=["distill.student.heads=2"]))


def test_the_teacher_is_asked_once_about_every_image_and_every_text(distilled: pipeline.Result) -> None:
    from transformers import CLIPModel

    facts, data, teach = (distilled.facts(name) or {} for name in ("data", "data", "teach"))
    splits = {name: read_split(distilled.steps["data"].path, name) for name in ("train", "validation", "test")}
    different = {task.sample_text(row) for rows in splits.values() for row in rows}
    assert facts["rows"]["train"] + facts["rows"]["validation"] == 192 and data["lengths"]["max"] > 3
    assert teach["samples"] == len(different) < 200
    assert not {task.group_text(r) for r in splits["train"]} & {task.group_text(r) for r in splits["validation"]}
    rows = splits["test"]
    found = read_logits(distilled.steps["teach"], "test")
    peer = CLIPModel.from_pretrained(str(distilled.recipe.teacher.model)).eval()
    first = task.encode(task.processor(distilled.steps["data"].path / "tokenizer"), rows[:2], 24)
    with torch.no_grad():
        logit = peer(
            pixel_values=torch.from_numpy(first[0]["pixel_values"])[None],
            input_ids=torch.tensor([first[1]["input_ids"]]),
        ).logits_per_image
    assert (found[0] @ found[1]).item() == pytest.approx(logit.item(), rel=1e-4)
    student = distilled.facts("distill-student") or {}
    assert {term["name"] for term in student["terms"]} == {"hard", "affinity", "cosine"}
    assert student["vocabulary"]["same"] > 0.9 and student["vocabulary"]["kept"] <= student["vocabulary"]["of"]
    assert student["shape"]["image_layers"] == student["shape"]["text_layers"] == 1
    assert student["metrics"]["test"]["teacher_agreement"] >= 0


def test_a_student_of_its_own_with_narrower_embeddings_learns_through_a_projection(
    distilled: pipeline.Result, tmp_path: Path
) -> None:
    """Its tokenizer and image processor are its own too; the projection is not shipped."""
    write_clip(tmp_path / "small", ["red at the top", "blue"], width=16, projection_dim=12)
    sets = [f"distill.student={{model: {tmp_path / 'small'}}}", "distill.max_steps=5", "distill.baseline=false"]
    made = recipe.parse(recipe.dump(distilled.recipe), overrides=sets)
    result = pipeline.run(made, distilled.folder, until="distill")
    assert result.made == ["distill-student"]
    facts, model = result.facts("distill-student") or {}, result.steps["distill-student"].path / "model"
    assert {"preprocessor_config.json", "tokenizer.json", "model.safetensors"} <= {p.name for p in model.iterdir()}
    assert facts["shape"]["image_hidden_size"] == 16 and facts["terms"][2]["value"] > 0
    from transformers import CLIPModel

    assert CLIPModel.from_pretrained(model).visual_projection.out_features == 12
    assert len(read_outputs(result.steps["distill-student"].file("test_logits.safetensors"))[0]) == 12


def test_the_text_tower_comes_out_alone_and_is_scored_with_the_students_images(distilled: pipeline.Result) -> None:
    planned = {step.id: step for step in pipeline.steps(distilled.recipe)}
    program = sealed(distilled, quantizing.run, pipeline.QUANTIZE, planned["quantize-text-w8a8"])
    assert [one["name"] for one in program.facts["inputs"]] == ["input_ids", "attention_mask"]
    assert {"tokenizer.json"} <= set(program.files) and "preprocessor_config.json" not in program.files
    reference = program.file("reference.safetensors")
    assert read_rows(reference) == list(range(1, 48, 2))
    sealed(distilled, exporting.run, pipeline.EXPORT, planned["export-onnx-text-w8a8"])
    verified = sealed(distilled, verifying.run, pipeline.VERIFY, planned["verify-onnx-text-w8a8"])
    facts = verified.facts
    assert (facts["samples"], facts["of"], facts["part"]) == (24, 24, "text")
    assert facts["golden"]["passed"] and facts["faithful"]["invariance"]["passed"]
    assert facts["faithful"]["numbers"]["missing"] == [] and facts["faithful"]["kernels"]["accelerated"]
    rows = read_split(distilled.steps["data"].path, "test")
    student = read_outputs(distilled.steps["distill-student"].file("test_logits.safetensors"))
    teacher = read_logits(distilled.steps["teach"], "test").numpy()
    both = list(student)
    both[1::2] = read_outputs(verified.file("logits.safetensors"))
    assert facts["metrics"] == task.metrics(both, rows, teacher)
    assert facts["student_metrics"] == task.metrics(student, rows, teacher)
    both[1::2] = read_outputs(reference)
    assert program.facts["metrics"]["test"] == task.metrics(both, rows)


@pytest.mark.slow
def test_it_ships_from_yaml_and_both_artefacts_together_answer_as_the_student(tmp_path: Path, edgekd) -> None:  # type: ignore[no-untyped-def]
    import onnxruntime

    made = written(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path, targets="[onnx]"))
    said = edgekd("ship", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run", "--json")
    assert said.code == 0, said.err + said.out
    names = {f"onnx-{part}-{scheme}" for part in ("image", "text") for scheme in ("fp32", "w8a8")}
    shown = tmp_path / "run" / "artifacts"
    assert {path.name for path in shown.iterdir()} == names
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {one["name"]: one["verdict"] for one in report["artifacts"]} == dict.fromkeys(names, "pass")
    assert all(one["latency"]["p50_ms"] > 0 for one in report["artifacts"])
    result = pipeline.collect(made, tmp_path / "run")
    rows = read_split(result.steps["data"].path, "test")
    expected = read_outputs(result.steps["distill-student"].file("test_logits.safetensors"))
    for part in ("image", "text"):
        folder = shown / f"onnx-{part}-fp32"
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        mine = [at for at, row in enumerate(rows) if task.part_of(row) == part]
        for at, one in zip(mine, task.encode(task.processor(folder), [rows[at] for at in mine], 24), strict=True):
            fed = {name: np.asarray(value, "f4" if part == "image" else "i8")[None] for name, value in one.items()}
            np.testing.assert_allclose(session.run(None, fed)[0][0], expected[at], atol=1e-5)


@pytest.mark.slow
def test_it_ships_to_every_target(tmp_path: Path) -> None:
    result = pipeline.run(written(tmp_path, "[onnx, litert, coreml, executorch, openvino]"), tmp_path / "run")
    assert not result.failures, {name: error.line() for name, error in result.failures.items()}
    for name in [step for step in result.steps if step.startswith("verify-")]:
        facts = result.facts(name) or {}
        assert facts["golden"]["passed"] and not facts["faithful"]["numbers"]["missing"], name
        assert facts["agreement"]["program"] == 1.0, name
