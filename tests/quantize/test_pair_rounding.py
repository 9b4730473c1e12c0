"""Training with rounding of students of two halves: what is compared, on which texts, and what it gains."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from _pairs import KINDS, PAIRS, folder, table
from _rounding import FEW, chooses_its_way, goes_on_after_a_kill, ships
from safetensors.torch import load_file
from torch import nn

from edgekd import artifact, pipeline, recipe
from edgekd.data.stage import read_split
from edgekd.distill import tokens as distilled
from edgekd.quantize import qat_tokens, tokens
from edgekd.quantize import scheme as schemes
from edgekd.tasks import text2text_generation as task

SECTIONS: dict[str, Any] = {
    "task": "text2text-generation",
    "data": {"max_length": 32},
    "teach": {"tokens": "top:16"},
    "distill": {"max_steps": 0, "temperature": 1.0},
    "quantize": {"schemes": ["w4"], "steps": 12, "evaluate_every": 6, "learning_rate": 3e-4, "batch_size": 8},
    "export": {"targets": ["onnxruntime"]},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "t5 with a head of its own": ("t5", {"tie_word_embeddings": False}),
    "marian with two tables": ("marian", {"share_encoder_decoder_embeddings": False}),
}
Parents = dict[str, artifact.Artifact]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind a teacher of two layers in each half and a student of one, and pairs."""
    out = tmp_path_factory.mktemp("pairs")
    for kind in KINDS:
        folder(out / kind / "teacher", kind)
        folder(out / kind / "student", kind, layers=1, seed=1)
    for name, rows in (("train", PAIRS[:120]), ("validation", PAIRS[120:150]), ("test", PAIRS[150:160])):
        table(out / f"{name}.jsonl", rows)
    return out


def recipe_of(world: Path, work: Path, kind: str, *sets: str) -> recipe.Recipe:
    sections = copy.deepcopy(SECTIONS)
    sections["teacher"] = {"model": str(world / kind / "teacher")}
    sections["distill"]["student"] = {"model": str(world / kind / "student")}
    sections["data"] |= {name: str(world / f"{name}.jsonl") for name in ("train", "validation", "test")}
    (work / "recipe.yaml").write_text(yaml.safe_dump(sections))
    return recipe.load(work / "recipe.yaml", sets)


@pytest.fixture(scope="module")
def parents(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Parents:
    """A BART's, whose teacher has translated the sources itself."""
    out = tmp_path_factory.mktemp("run")
    made = pipeline.run(recipe_of(world, out, "bart", "teach.answers=greedy"), out, until="distill")
    steps = {"data": "data", "teach": "teach", "distill": "distill-student"}
    return {name: made.steps[step] for name, step in steps.items()}


def trained(
    world: Path,
    parents: Parents,
    work: Path,
    *sets: str,
    progress: artifact.Progress = artifact.no_progress,
) -> tuple[nn.Module, artifact.Facts]:
    work.mkdir(exist_ok=True)
    own = recipe_of(world, work, "bart", "teach.answers=greedy", *sets)
    inputs = artifact.Inputs(parents, {"scheme": "w4"}, progress=progress)
    student = tokens.load_student(parents["distill"].path / "model")
    return tokens.trained(own, inputs, task, student, schemes.generative("w4", own.quantize), work)


def distance(model: nn.Module, student: nn.Module, rows: Any, processor: Any) -> float:
    encoded = task.encode(processor, rows, 32)
    found: float = qat_tokens.compared(model, student, task, encoded, len(processor), 64)["distance"]
    return found


@pytest.mark.parametrize(("name", "scheme"), [*((name, "w4") for name in MODELS), ("t5", "w8a8-dynamic")])
def test_the_loss_is_that_of_whole_distributions(name: str, scheme: str, tmp_path: Path) -> None:
    """Against autograd on the model's own logits and hidden states, with gradients to every weight of both halves."""
    kind, sizes = MODELS[name]
    for i, who in enumerate(("student", "teacher")):
        folder(tmp_path / who, kind, layers=2, seed=i, **sizes)
    student, teacher = (tokens.load_student(tmp_path / who) for who in ("student", "teacher"))
    encoded = task.encode(task.processor(tmp_path / "student"), PAIRS[:5], 32)
    vocabulary = tokens.tokens_of(tmp_path / "student")
    model = tokens.prepare(copy.deepcopy(student), schemes.generative(scheme)).requires_grad_(True)
    source = distilled.OnlineTokens(teacher, task, encoded, 0, ["logits"])
    rows = distilled.TokenRows(task, encoded, (), 0, source, vocabulary=vocabulary)
    picked, weights = [0, 3, 4], {"student": 1.0, "hidden": 0.5, "teacher": 0.25}
    trainee = qat_tokens.Trainee(model, {})
    inputs = rows.collate(picked)
    numbers = inputs.pop("rows").tolist()
    _, found = qat_tokens.values(student, weights, trainee, rows, [], inputs, numbers, 0.0, 2.0)
    torch.stack([weight * value for weight, value in found.values()]).sum().backward()
    gradients = {name: one.grad for name, one in model.named_parameters()}

    def told(net: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits, hidden = [], []
        for row in picked:
            given = {key: torch.tensor([encoded[row][key]]) for key in task.INPUTS}
            answer = net(**given, output_hidden_states=True)
            logits.append(answer.logits[0, :, :vocabulary])
            hidden.append(answer.decoder_hidden_states[1:])
        layers = [torch.cat([one[0] for one in layer]) for layer in zip(*hidden, strict=True)]
        return torch.cat(logits).div(2).log_softmax(-1), layers

    (mine, my_states), (own, own_states), (theirs, _) = told(model), told(student), told(teacher)
    assert len(my_states) == 2
    expected = {
        "student": 4 * F.kl_div(mine, own.detach(), reduction="batchmean", log_target=True),
        "hidden": torch.stack([F.mse_loss(*pair) for pair in zip(my_states, own_states, strict=True)]).mean(),
        "teacher": 4 * F.kl_div(mine, theirs.detach(), reduction="batchmean", log_target=True),
    }
    assert found.keys() == expected.keys()
    for name, (weight, value) in found.items():
        assert weight == weights[name] and value.item() == pytest.approx(expected[name].item(), rel=2e-3), name
    model.zero_grad()
    torch.stack([weights[name] * value for name, value in expected.items()]).sum().backward()
    still = {name for name, one in gradients.items() if one is None}
    assert all("embed_positions" in name for name in still) and (not still or kind == "marian")  # sines
    for name, one in model.named_parameters():
        if name not in still:
            assert one.grad is not None
            assert (one.grad - gradients[name]).norm() <= 2e-2 * one.grad.norm() + 1e-7, (
                name
            )  # of biases of keys: nothing


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_trains_what_it_ships(world: Path, kind: str, tmp_path: Path) -> None:
    """The winner is nearer to the float student than rounding alone, on text that did not choose it too; the folder
    that was written is as far as was judged, and every number lies on its grid."""
    made = pipeline.run(recipe_of(world, tmp_path, kind), tmp_path / "run", until="quantize")
    assert not made.failures
    facts, program = made.facts("quantize-w4"), made.steps["quantize-w4"].path
    distances = {entry["step"]: entry["distance"] for entry in facts["trace"]}  # type: ignore[index]
    step = facts["chosen_step"]  # type: ignore[index]
    assert list(distances) == [0, 6, 12] and step > 0 and facts["method"] == "qad"  # type: ignore[index]
    assert distances[step] < 0.95 * distances[0]
    data, folder = made.steps["data"].path, made.steps["distill-student"].path / "model"
    student, model, processor = tokens.load_student(folder), tokens.load(program), task.processor(folder)
    held = read_split(data, "validation")
    assert distance(model, student, held, processor) == pytest.approx(distances[step], rel=1e-4)
    start = tokens.quantized(student, schemes.generative("w4"), "mse", [], task)[0]
    assert distance(start, student, held, processor) == pytest.approx(distances[0], rel=1e-4)
    test = read_split(data, "test")
    assert distance(model, student, test, processor) < 0.95 * distance(start, student, test, processor)
    ships(load_file(program / "numbers.safetensors"), model)


@pytest.mark.parametrize("online", ["false", "true"])
def test_the_teachers_answers_are_learned_with_its_distributions(
    world: Path, parents: Parents, online: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What distillation trained on: not the data's targets, and of each token what the teacher says there."""
    seen: list[distilled.TokenRows] = []

    def train(model: nn.Module, student: nn.Module, rows: distilled.TokenRows, *_: Any, **__: Any) -> Any:
        seen.append(rows)
        return [{"step": 0, "distance": 0.0}]

    monkeypatch.setattr(qat_tokens, "train", train)
    for method in ("qad", "qat"):
        trained(world, parents, tmp_path, f"teach.online={online}", f"quantize.method={method}")
    answered = read_split(parents["teach"].path, "train")
    assert answered != read_split(parents["data"].path, "train")
    processor = task.processor(world / "bart" / "teacher")
    assert seen[0].encoded == seen[1].encoded == task.encode(processor, answered, 32)
    assert seen[1].source is None
    teacher, picked = tokens.load_student(world / "bart" / "teacher"), [7, 2]
    goal: Any = seen[0].goal(seen[0].told(picked), picked, torch.device("cpu"))
    if online == "true":
        likeliest = goal.head.logits(goal.hidden, goal.head.weight, goal.head.bias).argmax(-1)
    else:
        likeliest = goal.ids.gather(1, goal.log_probs.argmax(1, keepdim=True))[:, 0]
    wanted = []
    for row in picked:
        given = {key: torch.tensor([seen[0].encoded[row][key]]) for key in task.INPUTS}
        wanted += teacher(**given).logits[0].argmax(-1).tolist()
    assert likeliest.tolist() == wanted


def test_a_way_is_chosen_by_name_or_by_the_gate(world: Path, parents: Parents, tmp_path: Path) -> None:
    def trace(*sets: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = trained(world, parents, tmp_path / "-".join(sets), *FEW, *sets)[1]["trace"]
        return found

    strict = chooses_its_way(trace)
    own = trace("quantize.method=qat")
    assert own[0] == strict[0] and strict[-1]["loss"] > own[-1]["loss"] > 0


def test_a_killed_training_ends_with_the_same_numbers(world: Path, parents: Parents, tmp_path: Path) -> None:
    goes_on_after_a_kill(partial(trained, world, parents), tmp_path)
