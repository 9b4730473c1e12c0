"""Training with rounding of a student that writes text: what is compared, what wins, and what a kill costs."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _language import LINES, model_of, tokenizer
from _material import in_two_processes
from _rounding import FEW, chooses_its_way, goes_on_after_a_kill, ships
from safetensors.torch import load_file
from torch import nn

from edgekd import artifact, pipeline, recipe, registry
from edgekd.data.stage import read_split
from edgekd.distill import tokens as distilled
from edgekd.errors import BadInput
from edgekd.quantize import qat_tokens, tokens
from edgekd.quantize import scheme as schemes

SECTIONS: dict[str, Any] = {
    "task": "text-generation",
    "data": {"max_length": 32},
    "teach": {"tokens": "top:16"},
    "distill": {"max_steps": 0, "temperature": 1.0},
    "quantize": {"schemes": ["w4"], "steps": 12, "evaluate_every": 6, "learning_rate": 1e-3, "batch_size": 8},
    "export": {"targets": ["onnx"]},
}
Parents = dict[str, artifact.Artifact]


def recipe_of(folder: Path, *sets: str) -> recipe.Recipe:
    sections = copy.deepcopy(SECTIONS)
    sections["teacher"] = {"model": str(folder / "teacher")}
    sections["distill"]["student"] = {"model": str(folder / "student")}
    sections["data"] |= {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    return recipe.parse(json.dumps(sections), overrides=sets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of two layers, a student of one, and text; the student's last norm has a weight that is not 1."""
    folder = tmp_path_factory.mktemp("text")
    for name, layers in (("teacher", 2), ("student", 1)):
        model_of("qwen3", tokenizer(folder / name), num_hidden_layers=layers).save_pretrained(folder / name)
    for name, lines in (("train", LINES[:120]), ("validation", LINES[120:150]), ("test", LINES[150:160])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def parents(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Parents:
    made = pipeline.run(recipe_of(folder), tmp_path_factory.mktemp("run"), until="distill")
    steps = {"data": "data", "teach": "teach", "distill": "distill-student"}
    return {name: made.steps[step] for name, step in steps.items()}


def trained(
    folder: Path,
    parents: Parents,
    scratch: Path,
    *sets: str,
    scheme: str = "w4",
    progress: artifact.Progress = artifact.no_progress,
) -> tuple[nn.Module, artifact.Facts]:
    own = recipe_of(folder, *sets)
    inputs = artifact.Inputs(parents, {"scheme": scheme}, progress=progress)
    student = tokens.load_student(parents["distill"].path / "model")
    wanted = schemes.generative(scheme, own.quantize)
    return tokens.trained(own, inputs, registry.load("tasks", own.task), student, wanted, scratch)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("scheme", ["w4", "w8a8-dynamic"])
@pytest.mark.parametrize("packing", [0, 64])
def test_the_loss_is_that_of_whole_distributions(folder: Path, scheme: str, packing: int) -> None:
    """Against autograd on the model's own logits: two KLs and a squared error, with gradients to every weight."""
    task = registry.load("tasks", "text-generation")
    student, teacher = (tokens.load_student(folder / name) for name in ("student", "teacher"))
    encoded = task.encode(task.processor(folder / "student"), [{"text": line} for line in LINES[:5]], 32)
    vocabulary = tokens.tokens_of(folder / "student")
    model = tokens.prepare(copy.deepcopy(student), schemes.generative(scheme)).requires_grad_(True)
    source = distilled.OnlineTokens(teacher, task, encoded, 0, ["logits"])
    rows = distilled.TokenRows(task, encoded, (), 0, source, vocabulary=vocabulary, packing=packing)
    picked, weights = [0, 3, 4], {"student": 1.0, "hidden": 0.5, "teacher": 0.25}
    trainee = qat_tokens.Trainee(model, {})
    inputs = rows.collate(picked)
    numbers = inputs.pop("rows").tolist()
    _, found = qat_tokens.values(student, weights, trainee, rows, [], inputs, numbers, 0.0, 2.0)
    torch.stack([weight * value for weight, value in found.values()]).sum().backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters()}  # type: ignore[union-attr]

    def told(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        logits, hidden = [], []
        for row in picked:
            answer = net(input_ids=torch.tensor([encoded[row]["input_ids"]]), output_hidden_states=True)
            at = task.places(encoded[row])
            logits.append(answer.logits[0, at, :vocabulary])
            hidden.append(answer.hidden_states[-1][0, at])
        return torch.cat(logits).div(2).log_softmax(-1), torch.cat(hidden)

    (mine, my_hidden), (own, own_hidden), (theirs, _) = told(model), told(student), told(teacher)
    expected = {
        "student": 4 * F.kl_div(mine, own.detach(), reduction="batchmean", log_target=True),
        "hidden": F.mse_loss(my_hidden, own_hidden.detach()),
        "teacher": 4 * F.kl_div(mine, theirs.detach(), reduction="batchmean", log_target=True),
    }
    assert found.keys() == expected.keys()
    for name, (weight, value) in found.items():
        assert weight == weights[name] and value.item() == pytest.approx(expected[name].item(), rel=2e-3), name
    model.zero_grad()
    torch.stack([weights[name] * value for name, value in expected.items()]).sum().backward()
    for name, one in model.named_parameters():
        assert one.grad is not None
        assert (one.grad - gradients[name]).norm() <= 2e-2 * one.grad.norm(), name


@pytest.mark.parametrize("scheme", ["w4", "w8a8-dynamic"])
def test_what_was_judged_is_what_ships(folder: Path, parents: Parents, scheme: str, tmp_path: Path) -> None:
    """The chosen checkpoint's distance, found again on the folder that was written; every number on its grid."""
    inputs = artifact.Inputs(parents, {"scheme": scheme})
    facts = tokens.run(recipe_of(folder, "quantize.learning_rate=3e-4"), inputs, tmp_path)
    distances = {entry["step"]: entry["distance"] for entry in facts["trace"]}
    assert list(distances) == [0, 6, 12]
    best = min(distances, key=lambda step: distances[step])
    assert facts["chosen_step"] == (best if distances[best] < 0.95 * distances[0] else 0)
    assert facts["method"] == ("qad" if facts["chosen_step"] else "ptq")
    assert scheme != "w4" or facts["chosen_step"] > 0
    task = registry.load("tasks", "text-generation")
    held = task.encode(task.processor(tmp_path / "model"), read_split(parents["data"].path, "validation"), 32)
    student, model = tokens.load_student(parents["distill"].path / "model"), tokens.load(tmp_path)
    found = qat_tokens.compared(model, student, task, held, tokens.tokens_of(tmp_path / "model"), 64)
    assert found["distance"] == pytest.approx(distances[facts["chosen_step"]], rel=1e-4)
    numbers = load_file(tmp_path / "numbers.safetensors")
    ships(numbers, model)
    for name, scale in numbers.items():
        if not name.endswith(".scale"):
            continue
        weight_q = numbers[f"{name.removesuffix('.scale')}.weight"]
        int4 = scheme == "w4" and ".layers." in name
        assert scale.shape[1] == (weight_q.shape[1] // 32 if int4 else 1)
        assert weight_q.min() >= (-8 if int4 else -127) and weight_q.max() <= (7 if int4 else 127)


def test_training_that_goes_astray_leaves_the_start(folder: Path, parents: Parents, tmp_path: Path) -> None:
    wrecked, facts = trained(folder, parents, tmp_path / "a", "quantize.learning_rate=0.5")
    plain, only = trained(folder, parents, tmp_path / "b", "quantize.steps=0")
    assert (facts["chosen_step"], facts["method"]) == (0, "ptq")
    assert facts["trace"][-1]["distance"] > 5 * facts["trace"][0]["distance"]
    assert same(state(wrecked), state(plain)) and [entry["step"] for entry in only["trace"]] == [0]


def test_a_way_is_chosen_by_name_or_by_the_gate(folder: Path, parents: Parents, tmp_path: Path) -> None:
    def trace(*sets: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = trained(folder, parents, tmp_path / "-".join(sets), *FEW, *sets)[1]["trace"]
        return found

    strict = chooses_its_way(trace)
    own = trace("quantize.method=qat")
    assert own == trace("quantize.method=qad", "quantize.hidden_weight=0", "quantize.teacher_weight=0") != strict
    online = trace("teach.online=true")
    assert online[0] == strict[0]
    # Sixteen tokens and a bucket for the others tell two distributions apart less than all tokens do.
    assert online[-1]["loss"] > strict[-1]["loss"] > own[-1]["loss"] > 0


def test_a_killed_training_ends_with_the_same_numbers(folder: Path, parents: Parents, tmp_path: Path) -> None:
    goes_on_after_a_kill(partial(trained, folder, parents), tmp_path)


def test_a_divergence_names_the_section(folder: Path, parents: Parents, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="diverged") as caught:
        trained(folder, parents, tmp_path, "quantize.learning_rate=1e30")
    assert caught.value.where == "quantize" and "quantize.learning_rate" in str(caught.value.todo)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[distilled.TokenRows]:
    """The rows that are trained on, once they are."""
    seen: list[distilled.TokenRows] = []
    trains = qat_tokens.train

    def train(model: nn.Module, student: nn.Module, rows: distilled.TokenRows, *rest: Any, **more: Any) -> Any:
        seen.append(rows)
        return trains(model, student, rows, *rest, **more)

    monkeypatch.setattr(qat_tokens, "train", train)
    return seen


def test_a_trimmed_student_is_compared_where_it_cuts_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ids are its own: the teacher's distributions come under them, and only for rows that both cut alike."""
    seen, shape = watched(monkeypatch), "distill.student={layers: 1, vocabulary: 0.97}"
    sets = (shape, "distill.baseline=false", "quantize.steps=2", "export.targets=[gguf]")
    pytest.importorskip("gguf", reason="gguf is not installed (pip install 'edgekd[gguf]')")
    made = pipeline.run(recipe_of(folder, *sets), tmp_path, until="quantize")
    assert not made.failures
    rows = seen[0]
    assert rows.ids is not None and rows.words < rows.vocabulary
    assert rows.aligned is not None and 0 < int(rows.aligned.sum()) < len(rows)
    facts = made.facts("quantize-w4")
    assert facts and [entry["step"] for entry in facts["trace"]] == [0, 2]


def test_behind_an_address_the_answers_are_the_text(
    folder: Path, parents: Parents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No distribution of the teacher to compare with: the float student's own, on what the teacher wrote."""
    (tmp_path / "teach").mkdir()
    answers = [{"prompt": f"tell me {i} ", "response": LINES[i]} for i in range(20)]
    (tmp_path / "teach" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    seen = watched(monkeypatch)
    answered = parents | {"teach": artifact.Artifact(tmp_path / "teach", "teach", "", "", "")}
    _, facts = trained(folder, answered, tmp_path / "scratch", "quantize.steps=2")
    task = registry.load("tasks", "text-generation")
    assert seen[0].source is None
    assert seen[0].encoded == task.encode(task.processor(folder / "student"), answers, 32)
    assert [entry["step"] for entry in facts["trace"]] == [0, 2]


def test_the_pipeline_lets_it_read_what_it_needs(folder: Path, tmp_path: Path) -> None:
    sets = ("quantize.steps=2", "quantize.method=auto", "gate.max_perplexity_rise={w4: -1.0}", "distill.packing=true")
    made = pipeline.run(recipe_of(folder, *sets), tmp_path, until="quantize")
    facts = made.facts("quantize-w4")
    assert facts and [entry["step"] for entry in facts["trace"]] == [0, 2]
    again = pipeline.run(recipe_of(folder, *sets, "quantize.teacher_weight=0"), tmp_path, until="quantize")
    assert again.made == ["quantize-w4"]


@pytest.mark.slow
def test_two_processes_share_the_training(folder: Path, parents: Parents, tmp_path: Path) -> None:
    """Under ``torchrun`` the same command ends, one process speaks, and it comes to about the same."""
    sets = ("quantize.learning_rate=3e-4", "distill.baseline=false")
    (tmp_path / "recipe.yaml").write_text(recipe.dump(recipe_of(folder, *sets)))
    told = in_two_processes("quantize", tmp_path / "recipe.yaml", tmp_path / "two", 600)
    two = told["steps"]["quantize-w4"]["trace"]
    one = trained(folder, parents, tmp_path / "one", *sets)[1]["trace"]
    assert two[0] == one[0]
    assert two[-1]["distance"] == pytest.approx(one[-1]["distance"], rel=0.1)
