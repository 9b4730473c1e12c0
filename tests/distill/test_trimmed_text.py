"""Language models with fewer tokens than their teachers: the same text, the same logits, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _language import HARD, LINES, TEMPLATE, model_of, tokenizer
from transformers import AutoModelForCausalLM

from edgekd.distill import student, tokens, trainer, vocabulary
from edgekd.errors import BadInput
from edgekd.recipe import Student, Term
from edgekd.tasks import text_generation as task
from edgekd.teach import sparse
from edgekd.teach.stage import knowledge

SEEN, UNSEEN = LINES[:8], [*LINES[20:24], *HARD]


class World:
    """A teacher, and its tokenizer trimmed to what ``SEEN`` needs (or to a share of it)."""

    def __init__(self, folder: Path, coverage: float = 1.0, tied: bool = False) -> None:
        self.old, self.new = folder / "old", folder / "new"
        self.vocabulary = tokenizer(self.old)
        self.teacher = model_of("qwen3", self.vocabulary + 5, tied=tied, seed=1)  # rows that no token has
        self.teacher.generation_config.eos_token_id = [2, 0]
        self.teacher.generation_config.suppress_tokens = [1, 399]
        self.before = task.processor(self.old)
        counts = vocabulary.count(one["input_ids"] for one in self.encoded(self.before, SEEN))
        named = student.token_ids(self.teacher)
        self.trimmed = vocabulary.trim(vocabulary.read(self.old), counts, coverage, always=named)
        vocabulary.write(self.old, self.trimmed, self.new)
        self.after = task.processor(self.new)
        self.ids = vocabulary.new_ids(self.old, self.new)

    def strange(self) -> list[str]:
        """Two texts that it cuts otherwise."""
        texts = LINES[8:]
        pairs = [self.encoded(processor, texts) for processor in (self.after, self.before)]
        return [text for text, same in zip(texts, tokens.alike(*pairs, self.ids), strict=True) if not same][:2]

    @staticmethod
    def encoded(processor: Any, texts: list[str]) -> list[dict[str, Any]]:
        return task.encode(processor, [{"text": text} for text in texts], 64)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("trimmed"))


def test_seen_text_keeps_its_tokens_and_any_text_can_be_written(world: World) -> None:
    assert world.ids is not None and len(world.after) == len(world.trimmed.kept) < 0.9 * world.vocabulary
    pairs = [world.encoded(processor, SEEN) for processor in (world.after, world.before)]
    assert all(tokens.alike(*pairs, world.ids))
    for text in [*world.strange(), *UNSEEN, "日本語 🎉\u2028\x00"]:
        assert world.after.decode(world.after(text)["input_ids"]) == text
    told = [{"role": "user", "content": SEEN[0]}, {"role": "assistant", "content": SEEN[1]}]
    assert world.after.chat_template == TEMPLATE
    chats = [task.encode(one, [{"messages": told}], 64) for one in (world.after, world.before)]
    assert [world.ids[id] for id in chats[1][0]["input_ids"]][:3] == chats[0][0]["input_ids"][:3]
    special = [world.before.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert [world.ids[id] for id in special] == [
        world.after.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_trimmed_student_says_what_its_teacher_says_of_the_tokens_it_has(tied: bool, tmp_path: Path) -> None:
    """Rows of table and head are the teacher's; whatever names a token by its id names it by the new one."""
    world = World(tmp_path, tied=tied)
    assert world.ids is not None
    kept = world.trimmed.kept
    made: Any = student.make(Student(layers=2), world.teacher, AutoModelForCausalLM, 0, kept=kept).eval()
    student.save(made, world.new, tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert again.config.vocab_size == len(kept) == again.lm_head.out_features
    old = torch.tensor([world.encoded(world.before, SEEN[:1])[0]["input_ids"]])
    new = torch.tensor([world.encoded(world.after, SEEN[:1])[0]["input_ids"]])
    with torch.no_grad():
        theirs = world.teacher(input_ids=old).logits[..., kept]
        for one in (made, again):
            torch.testing.assert_close(one(input_ids=new).logits, theirs, rtol=1e-5, atol=1e-5)
    ids = world.ids
    assert again.config.eos_token_id == ids[2] and again.config.pad_token_id == ids[0]
    assert again.generation_config.eos_token_id == [ids[2], ids[0]]
    assert again.generation_config.suppress_tokens == [ids[1], ids[399]] and -1 not in (ids[1], ids[399])
    assert world.teacher.generation_config.eos_token_id == [2, 0]  # the teacher's own is as it was
    assert world.after.eos_token_id == ids[world.before.eos_token_id]


def test_only_a_trimmed_tokenizer_is_let_through(world: World, tmp_path: Path) -> None:
    assert vocabulary.new_ids(world.old, world.old) is None
    for coverage in (0.5, 0.9):
        assert World(tmp_path / f"{coverage}", coverage).ids is not None
    found = vocabulary.read(world.new)
    changes: dict[str, Any] = {
        "another merge first": {"model": {**found["model"], "merges": found["model"]["merges"][::-1]}},
        "other words": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        "an end less": {"added_tokens": found["added_tokens"][:-1]},
    }
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({**found, **change}))
        with pytest.raises(BadInput, match="not the teacher's"):
            vocabulary.new_ids(world.old, tmp_path / name)
    tokenizer(tmp_path / "larger", vocabulary=450)
    with pytest.raises(BadInput, match="not the teacher's"):
        vocabulary.new_ids(world.old, tmp_path / "larger")


def test_a_distribution_among_fewer_tokens_is_what_it_says_given_those() -> None:
    p = torch.tensor([[0.4, 0.3, 0.2], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])  # 0.1, nothing and nothing is left over
    ids = torch.tensor([[3, 4, 5], [0, 4, 6], [0, 1, 5]])
    new = torch.tensor([0, 1, -1, 2, 3, -1, -1])
    found, log_p, lost = sparse.among(ids, p.log(), new)
    torch.testing.assert_close(lost, torch.tensor([0.2, 0.25, 1.0]))
    torch.testing.assert_close(log_p[:2].exp(), torch.tensor([[0.5, 0.375, 0.0], [0.5 / 0.75, 0.25 / 0.75, 0.0]]))
    assert found[0, :2].tolist() == [2, 3] and found[1, :2].tolist() == [0, 3]
    assert torch.isinf(log_p[2]).all() and (found >= 0).all()


class Source:
    """A cache in memory."""

    def __init__(self, world: World, encoded: Any, kind: str) -> None:
        self.kind = kind
        self.records = knowledge(world.teacher, task, encoded, 0, [kind], world.vocabulary)[kind]

    def __call__(self, rows: Any) -> dict[str, Any]:
        return {self.kind: [self.records[row] for row in rows]}


def loss_of(rows: tokens.TokenRows, net: Any, numbers: list[int], alpha: float) -> Any:
    learner = tokens.TokenLearner(net, {})
    lessons = trainer.lessons_of([Term(loss="forward-kl", pool="output")], lambda term: [("logits", "logits")])
    inputs = rows.collate(numbers)
    inputs.pop("rows")
    _, found = tokens.values(learner, rows, lessons, inputs, numbers, alpha, 1.0)
    sum(weight * value for weight, value in found.values()).backward()
    return found


@pytest.mark.parametrize("how", ["online", "cached", "packed"])
def test_the_loss_is_that_of_plain_autograd_given_the_tokens_that_are_left(world: World, how: str) -> None:
    """Rows that are cut otherwise teach nothing softly, and count among the tokens all the same."""
    assert world.ids is not None
    one, other = world.strange()
    texts = [SEEN[0], one, SEEN[3], other]
    mine, theirs = (world.encoded(processor, texts) for processor in (world.after, world.before))
    aligned = torch.tensor(tokens.alike(mine, theirs, world.ids))
    assert aligned.tolist() == [True, False, True, False]
    everything = f"top:{world.vocabulary}"
    source = (
        tokens.OnlineTokens(world.teacher, task, theirs, 0, ["logits"])
        if how == "online"
        else Source(world, theirs, everything)
    )
    rows = tokens.TokenRows(
        task, mine, [None] * 4, 0, source, aligned, kept=everything, vocabulary=world.vocabulary,
        ids=torch.tensor(world.ids), packing=96 if how == "packed" else 0,
    )  # fmt: skip
    nets = [model_of("qwen3", len(world.after), seed=2) for _ in range(2)]
    numbers, alpha = [1, 2, 0], 0.3
    found = loss_of(rows, nets[0], numbers, alpha)
    soft, hard, dropped = [], [], []
    gone = [i for i, id in enumerate(world.ids) if id < 0]
    for row in numbers:
        ids, at = torch.tensor([mine[row]["input_ids"]]), task.places(mine[row])
        logs = nets[1](input_ids=ids).logits[0, at].log_softmax(-1)
        hard.append(-logs.gather(1, ids[0, 1:, None])[:, 0])
        if not aligned[row]:
            soft.append(torch.zeros(len(at)))
            continue
        with torch.no_grad():
            logits = world.teacher(input_ids=torch.tensor([theirs[row]["input_ids"]])).logits[0, at]
        goal = logits[:, world.trimmed.kept].log_softmax(-1)
        soft.append((goal.exp() * (goal - logs)).sum(-1))
        dropped.append(logits[:, : world.vocabulary].softmax(-1)[:, gone].sum(-1))
    expected = (1 - alpha) * torch.cat(soft).mean() + alpha * torch.cat(hard).mean()
    expected.backward()
    near = {"rel": 1e-4} if how == "online" else {"rel": 2e-2}  # six bits a number
    assert float(found["tokens"][1]) == pytest.approx(float(expected), **near)
    if how != "online":
        mass = float(torch.cat(dropped).sum()) / sum(map(len, hard))
        assert float(found[tokens.DROPPED][1]) == pytest.approx(mass, rel=2e-2)
    for (name, left), (_, right) in zip(nets[0].named_parameters(), nets[1].named_parameters(), strict=True):
        assert (left.grad - right.grad).norm() <= (1e-3 if how == "online" else 0.05) * right.grad.norm(), name


def test_a_batch_without_a_row_to_compare_teaches_nothing_softly(world: World) -> None:
    texts = [*world.strange(), SEEN[0]]
    mine, theirs = (world.encoded(processor, texts) for processor in (world.after, world.before))
    aligned = torch.tensor(tokens.alike(mine, theirs, world.ids))
    rows = tokens.TokenRows(
        task, mine, [None] * 3, 0, Source(world, theirs, "top:16"), aligned, kept="top:16",
        vocabulary=world.vocabulary, ids=torch.tensor(world.ids),
    )  # fmt: skip
    net = model_of("qwen3", len(world.after), seed=2)
    found = loss_of(rows, net, [0, 1], 0.0)
    assert float(found["forward-kl"][1]) == 0
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_draws_of_lost_tokens_alone_say_nothing(world: World) -> None:
    """Where each draw was one that the student lacks, its distribution is not asked for."""
    assert world.ids is not None
    mine, theirs = (world.encoded(processor, SEEN[:1]) for processor in (world.after, world.before))
    gone = [i for i, id in enumerate(world.ids) if id < 0]
    how = sparse.kind("sampled:4", world.vocabulary)
    logits = torch.full((len(task.places(mine[0])), world.vocabulary), -100.0)
    logits[:, gone[0]] = 0.0
    logits[0] = world.teacher(input_ids=torch.tensor([theirs[0]["input_ids"]])).logits[0, 0, : world.vocabulary]
    logits[0, gone] = -100.0
    records = sparse.encode(logits.detach(), how, torch.Generator().manual_seed(0))
    rows = tokens.TokenRows(
        task, mine, [None], 0, lambda rows: {"sampled:4": [records]}, kept="sampled:4",
        vocabulary=world.vocabulary, ids=torch.tensor(world.ids),
    )  # fmt: skip
    goal = rows.goal(rows.source([0]), [0], torch.device("cpu"))  # type: ignore[misc]
    assert goal.counts.tolist() == [True] + [False] * (len(logits) - 1)  # type: ignore[union-attr]
    net = model_of("qwen3", len(world.after), seed=2)
    found = loss_of(rows, net, [0], 0.0)
    drawn, log_p = sparse.decode(records[:1], how)
    logs = net(input_ids=torch.tensor([mine[0]["input_ids"]])).logits[0, 0].log_softmax(-1)
    expected = sum(
        float(lp.exp() * (lp - logs[world.ids[int(id)]]))
        for id, lp in zip(drawn[0], log_p[0], strict=True)
        if torch.isfinite(lp)
    )
    assert float(found["forward-kl"][1]) == pytest.approx(expected / len(logits), rel=1e-4)


def test_outputs_are_compared_where_both_cut_alike() -> None:
    ids = [0, -1, 1, 2]
    theirs = [task.renumbered(np.array(one, np.float32), ids) for one in ([[-1, 2, 3], [-2, 1, 1]], [[-1, 2, 2]])]
    assert theirs[0][0].tolist() == [-1, 1, 2] and theirs[0][1, 1] == theirs[0][1, 2] < 0  # what is right stays right
    mine = [np.array([[-3, 1, 2], [-1, 0, 0], [-1, 0, 0]], np.float32), np.array([[-1.5, 1, 1]], np.float32)]
    assert task.metrics(mine, [], theirs)["teacher_agreement"] == 1.0 and task.distance(mine, theirs) == 0.5
    assert (
        "teacher_agreement" not in task.metrics(mine[:1], [], theirs[:1]) and task.distance(mine[:1], theirs[:1]) == 0
    )
    assert task.agree(mine, theirs).tolist() == [1.0, 1.0]
