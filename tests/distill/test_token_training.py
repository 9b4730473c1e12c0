"""A language model is taught: cached as online, packed as padded, and without the padding of its matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _language import LINES, model_of, student, tokenizer

from edgekd.distill import tokens, trainer
from edgekd.errors import BadInput
from edgekd.losses import _tokens
from edgekd.recipe import Term
from edgekd.tasks import text_generation as task
from edgekd.teach import sparse
from edgekd.teach.stage import knowledge


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = student(tmp_path_factory.mktemp("lm"))
    processor = task.processor(folder)
    rows = [{"text": line} for line in LINES[:9]] + [{"prompt": LINES[10], "response": LINES[11]}]
    return {
        "teacher": model_of("qwen3", len(processor), seed=1),
        "encoded": task.encode(processor, rows, 64),
        "vocabulary": len(processor),
        "folder": folder,
    }


class Source:
    """A cache in memory."""

    def __init__(self, world: dict[str, Any], kind: str) -> None:
        found = knowledge(world["teacher"], task, world["encoded"], 0, [kind], world["vocabulary"])
        self.kind, self.records = kind, found[kind]

    def __call__(self, rows: Any) -> dict[str, Any]:
        return {self.kind: [self.records[row] for row in rows]}


def rows_of(world: dict[str, Any], source: Any, **more: Any) -> tokens.TokenRows:
    count = len(world["encoded"])
    return tokens.TokenRows(task, world["encoded"], [None] * count, 0, source, vocabulary=world["vocabulary"], **more)


def loss_of(world: dict[str, Any], rows: tokens.TokenRows, numbers: list[int], alpha: float = 0.3) -> Any:
    net = model_of("qwen3", world["vocabulary"], seed=2)
    learner = tokens.TokenLearner(net, {})
    lessons = trainer.lessons_of([Term(loss="forward-kl", pool="output")], lambda term: [("logits", "logits")])
    inputs = rows.collate(numbers)
    inputs.pop("rows")
    _, found = tokens.values(learner, rows, lessons, inputs, numbers, alpha, 1.0)
    loss = sum(weight * value for weight, value in found.values())
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}, found


def test_a_cache_of_everything_teaches_what_the_teacher_does(world: dict[str, Any]) -> None:
    everything = f"top:{world['vocabulary']}"
    cached = loss_of(world, rows_of(world, Source(world, everything), kept=everything), list(range(10)))
    whole = tokens.OnlineTokens(world["teacher"], task, world["encoded"], 0, ["logits"])
    online = loss_of(world, rows_of(world, whole), list(range(10)))
    assert cached[0] == pytest.approx(online[0], rel=1e-2)  # six bits a number
    for name, gradient in online[1].items():
        assert (cached[1][name] - gradient).norm() <= 0.05 * gradient.norm(), name
    assert online[1].keys() == cached[1].keys()


def test_the_loss_is_that_of_plain_autograd(world: dict[str, Any]) -> None:
    whole = tokens.OnlineTokens(world["teacher"], task, world["encoded"], 0, ["logits"])
    numbers = [9, 0, 4]
    value, gradients, found = loss_of(world, rows_of(world, whole), numbers)
    net = model_of("qwen3", world["vocabulary"], seed=2)
    soft, hard = [], []
    for row in numbers:
        one = world["encoded"][row]
        ids, at = torch.tensor([one["input_ids"]]), task.places(one)
        mine = net(input_ids=ids).logits[0, at].log_softmax(-1)
        with torch.no_grad():
            theirs = world["teacher"](input_ids=ids).logits[0, at].log_softmax(-1)
        soft.append((theirs.exp() * (theirs - mine)).sum(-1))
        hard.append(-mine.gather(1, torch.tensor(one["input_ids"])[[i + 1 for i in at]][:, None])[:, 0])
    expected = 0.7 * torch.cat(soft).mean() + 0.3 * torch.cat(hard).mean()
    expected.backward()
    assert value == pytest.approx(float(expected), rel=1e-4)
    assert float(found["hard"][1]) == pytest.approx(float(torch.cat(hard).mean()), rel=1e-4)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_packed_texts_do_not_see_each_other(world: dict[str, Any]) -> None:
    source = Source(world, "top:32")
    padded = loss_of(world, rows_of(world, source, kept="top:32"), list(range(10)))
    rows = rows_of(world, source, kept="top:32", packing=64)
    packed = loss_of(world, rows, list(range(10)))
    lines = rows.collate(list(range(10)))["input_ids"]
    assert len(lines) < 10 and lines.shape[1] <= 64
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    for name, gradient in padded[1].items():
        torch.testing.assert_close(packed[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_what_a_cache_cannot_give_is_refused_before_training() -> None:
    settings = {"online": False, "kept": "top:64", "packing": False, "temperature": 1.0}

    def lessons(loss: str, pool: str = "output") -> Any:
        pair = ("logits", "logits") if pool == "output" else ("hidden:1:tokens", "hidden:1:tokens")
        return trainer.lessons_of([Term(loss=loss, pool=pool)], lambda term: [pair])

    tokens.check(lessons("forward-kl"), settings)
    tokens.check(lessons("reverse-kl"), settings | {"online": True})
    with pytest.raises(BadInput, match="whole distribution"):
        tokens.check(lessons("reverse-kl"), settings)
    with pytest.raises(BadInput, match="not for tokens"):
        tokens.check(lessons("mse"), settings)
    with pytest.raises(BadInput, match="temperature 1"):
        tokens.check(lessons("forward-kl"), settings | {"kept": "sampled:32", "temperature": 2.0})
    with pytest.raises(BadInput, match="row by row"):
        tokens.check(lessons("mse", "none"), settings | {"packing": True})


def test_a_head_says_its_scale_and_cap(world: dict[str, Any]) -> None:
    net = model_of("qwen3", world["vocabulary"])
    net.config.final_logit_softcapping, net.config.logits_scaling = 30.0, 4.0
    found = tokens.head(net)
    assert (found.cap, found.scale) == (30.0, 0.25) and found.weight is net.lm_head.weight
    assert isinstance(found, _tokens.Head) and sparse.is_kind("top:64") and not sparse.is_kind("hidden:1:cls")


def test_half_of_the_layers_make_a_student(world: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from edgekd.distill import student as students
    from edgekd.recipe import Student

    teacher = model_of("qwen3", world["vocabulary"], num_hidden_layers=4)
    made = students.make(Student(layers=2), teacher, AutoModelForCausalLM, 0)
    assert made.config.num_hidden_layers == 2 == len(made.config.layer_types)
    mine, theirs = made.state_dict(), teacher.state_dict()
    for layer, source in ((0, 0), (1, 3)):
        name = "self_attn.q_proj.weight"
        assert torch.equal(mine[f"model.layers.{layer}.{name}"], theirs[f"model.layers.{source}.{name}"])
    tokenizer(tmp_path / "tokenizer")
    students.save(made, tmp_path / "tokenizer", tmp_path / "student")
    again = students.load(tmp_path / "student", AutoModelForCausalLM)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(again(input_ids=ids).logits, made(input_ids=ids).logits)
