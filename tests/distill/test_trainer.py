"""The trainer: its loss, its batches, and that an interruption changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, load_model
from transformers import AutoModelForSequenceClassification

from edgekd import artifact, pipeline, recipe
from edgekd.distill import sources, stage, trainer
from edgekd.errors import BadInput
from edgekd.losses.logits import forward_kl
from edgekd.recipe import Term
from edgekd.tasks import text_classification as task
from edgekd.teach import knowledge

EVERY_KIND = """
  losses:
    - {loss: forward-kl}
    - {loss: hidden-mse, weight: 2, pool: cls}
    - {loss: hidden-cosine, pool: none, layers: uniform}
    - {loss: attention-kl, layers: [[1, 2]]}
    - {loss: minilm, heads: 4}
    - {loss: rkd-distance, pool: mean}
"""


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory) -> pipeline.Result:  # type: ignore[no-untyped-def]
    text = tiny.recipe.replace("distill:\n", "distill:" + EVERY_KIND, 1)
    return pipeline.run(recipe.parse(text), tmp_path_factory.mktemp("run"), until="teach")


@pytest.fixture(scope="module")
def teacher(tiny):  # type: ignore[no-untyped-def]
    return AutoModelForSequenceClassification.from_pretrained(tiny.folder / "teacher", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def lessons(taught, teacher) -> list[trainer.Lesson]:  # type: ignore[no-untyped-def]
    return trainer.lessons_of(taught.recipe.distill.losses, lambda term: knowledge.links(term, 1, 2))


@pytest.fixture(scope="module")
def rows(taught, lessons) -> trainer.Rows:  # type: ignore[no-untyped-def]
    return make_rows(taught, lessons)


def make_rows(taught, lessons, teacher=None) -> trainer.Rows:  # type: ignore[no-untyped-def]
    """Training rows with the teacher's knowledge from the cache or, given a teacher, from it."""
    data = taught.steps["data"]
    examples = stage.read_split(data.path, "train")
    encoded = task.encode(task.processor(data.path / "tokenizer"), examples, 16)
    names = sorted({"logits", *(link.teacher for lesson in lessons for link in lesson.links)})
    cached = teacher is None
    source = (
        sources.Cached(taught.steps["teach"], ["train"], names)
        if cached
        else sources.Online(teacher, task, encoded, 0, names)
    )
    return trainer.Rows(task, encoded, task.targets(examples), 0, source)


KL = trainer.Lesson("forward-kl", Term(loss="forward-kl"), (trainer.Link("logits", "logits"),))


def loss(model, rows, numbers, alpha, lessons=(KL,), batch=None, temperature=2.0) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The loss that a training step would have."""
    inputs = dict(batch or rows.collate(numbers))
    inputs.pop("rows", None)
    bare = model if isinstance(model, trainer.Learner) else trainer.Learner(model, {})
    _, parts = trainer.values(bare, rows, lessons, inputs, numbers, alpha, temperature)
    return torch.stack([weight * value for weight, value in parts.values()]).sum()


def smaller(teacher):  # type: ignore[no-untyped-def]
    config = copy.deepcopy(teacher.config)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 16, 32, 1
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_cached_knowledge_is_the_teachers_in_any_order(rows, taught, lessons, teacher) -> None:  # type: ignore[no-untyped-def]
    online = make_rows(taught, lessons, teacher)
    model = trainer.learner(smaller(teacher), lessons, rows, 0)
    for start in (0, 60, 120):
        picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(start))[:16].tolist()
        cached, asked = rows.source(picked), online.source(picked)  # type: ignore[misc]
        assert cached.keys() == asked.keys()
        torch.testing.assert_close(cached["logits"], asked["logits"], atol=1e-5, rtol=1e-5)
        mask_BS = rows.collate(picked)["attention_mask"]
        real = {2: torch.ones(len(picked), 1), 3: mask_BS[..., None], 4: mask_BS[:, None, :, None]}
        for name in cached.keys() - {"logits"}:  # kept in float16; padding holds nothing
            keep = real[cached[name].dim()]
            torch.testing.assert_close(cached[name] * keep, asked[name] * keep, atol=5e-3, rtol=5e-3)
        mine, theirs = (loss(model, one, picked, 0.3).item() for one in (rows, online))
        assert mine == pytest.approx(theirs, abs=1e-5)
        mine, theirs = (loss(model, one, picked, 0.3, lessons).item() for one in (rows, online))
        assert mine == pytest.approx(theirs, rel=2e-3)


def test_alpha_mixes_the_hard_and_the_soft_loss(rows, teacher) -> None:  # type: ignore[no-untyped-def]
    numbers = list(range(8))
    batch, student = rows.collate(numbers), smaller(teacher)
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = torch.tensor([rows.targets[i] for i in numbers])
    hard, soft = F.cross_entropy(logits, labels), forward_kl(logits, rows.source(numbers)["logits"], 2.0)
    for alpha in (0.0, 0.25, 1.0):
        expected = alpha * hard + (1 - alpha) * soft
        assert loss(student, rows, numbers, alpha).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_equal_to_the_teacher_has_nothing_to_learn(taught, lessons, teacher) -> None:  # type: ignore[no-untyped-def]
    last = [one.term.model_copy(update={"layers": "last"}) for one in lessons]
    same = trainer.lessons_of(last, lambda term: knowledge.links(term, 2, 2))
    online = make_rows(taught, same, teacher)
    assert loss(teacher, online, list(range(8)), 0.0, same).item() == pytest.approx(0.0, abs=1e-5)


def test_the_teacher_gets_no_gradient_and_no_dropout(taught, lessons, teacher) -> None:  # type: ignore[no-untyped-def]
    own = copy.deepcopy(teacher).train().requires_grad_(True)
    online = make_rows(taught, lessons, own)
    again = [loss(smaller(teacher), online, [0, 1, 2, 3], 0.2, lessons[:1]) for _ in range(2)]
    assert again[0].item() == again[1].item()
    again[0].backward()
    assert all(p.grad is None for p in own.parameters())


def test_padding_and_micro_batches_change_neither_loss_nor_gradient(rows, lessons, teacher) -> None:  # type: ignore[no-untyped-def]
    model = trainer.learner(smaller(teacher), lessons, rows, 0)
    alone = [one for one in lessons if one.term.loss != "rkd-distance"]  # it compares the samples of one batch

    def gradient(parts: list[tuple[list[int], dict[str, torch.Tensor]]], which) -> torch.Tensor:  # type: ignore[no-untyped-def]
        model.zero_grad()
        for numbers, batch in parts:
            (loss(model, rows, numbers, 0.3, which, batch) / len(parts)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    numbers = list(range(8))
    batch = rows.collate(numbers)
    padded = batch | {k: F.pad(batch[k], (0, 3)) for k in ("input_ids", "attention_mask")}
    whole = gradient([(numbers, batch)], lessons)
    torch.testing.assert_close(gradient([(numbers, padded)], lessons), whole, atol=1e-5, rtol=1e-3)
    # A mean over tokens weighs rows by their length; outputs and pooled states weigh rows alike.
    alike = [one for one in alone if one.term.pool != "none" and one.term.loss not in ("attention-kl", "minilm")]
    halves = [(half, rows.collate(half)) for half in ([0, 1, 2, 3], [4, 5, 6, 7])]
    torch.testing.assert_close(gradient(halves, alike), gradient([(numbers, batch)], alike), atol=1e-5, rtol=1e-3)


def test_unlabelled_rows_take_part_in_the_soft_loss_only(rows, teacher) -> None:  # type: ignore[no-untyped-def]
    student = smaller(teacher)
    bare = trainer.Rows(task, rows.encoded, [None] * len(rows), 0, rows.source)
    assert loss(student, bare, [0, 1], 1.0).item() == 0.0
    assert loss(student, bare, [0, 1], 0.0).item() > 0.0


def test_rows_cut_into_other_tokens_are_left_out_of_token_terms_alone(rows, lessons, teacher) -> None:  # type: ignore[no-untyped-def]
    tokens = [one for one in lessons if one.term.pool == "none"]
    model = trainer.learner(smaller(teacher), lessons, rows, 0)
    aligned = torch.ones(len(rows), dtype=torch.bool)
    aligned[[1, 2]] = False
    some = trainer.Rows(task, rows.encoded, rows.targets, 0, rows.source, aligned)
    kept = loss(model, rows, [0, 3], 0.0, tokens).item()
    assert loss(model, some, [0, 1, 2, 3], 0.0, tokens).item() == pytest.approx(kept, rel=1e-5)
    assert loss(model, some, [1, 2], 0.0, tokens).item() == 0.0


def test_sentence_pairs_stay_together() -> None:
    sampler = trainer.LengthGrouped([n % 7 + 3 for n in range(50)], 8, seed=1, group=2)
    order = list(sampler)
    assert sorted(order) == list(range(50))
    assert all(order[k] % 2 == 0 and order[k + 1] == order[k] + 1 for k in range(0, 50, 2))


def test_batches_hold_every_row_once_and_follow_from_seed_and_epoch() -> None:
    lengths = [n % 13 + 3 for n in range(103)]
    sampler = trainer.LengthGrouped(lengths, 8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(103))
    assert first == list(trainer.LengthGrouped(lengths, 8, seed=3))
    sampler.set_epoch(1)
    assert list(sampler) != first
    spread = [
        max(lengths[i] for i in first[k : k + 8]) - min(lengths[i] for i in first[k : k + 8]) for k in range(0, 96, 8)
    ]
    assert sum(spread) / len(spread) < 3  # unsorted batches of 8 spread over about 10


def run(tiny, taught, out: Path, kind: str, *sets: str, progress=artifact.no_progress) -> dict:  # type: ignore[no-untyped-def]
    out.mkdir(exist_ok=True)
    parents = {"data": taught.steps["data"], "teach": taught.steps["teach"]}
    inputs = artifact.Inputs(parents, {"kind": kind}, progress=progress)
    return stage.run(recipe.parse(tiny.recipe, overrides=sets), inputs, out)


def test_resumed_training_ends_with_the_same_bytes(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    facts = run(tiny, taught, tmp_path / "whole", "student")
    assert facts["metrics"]["test"]["accuracy"] > 0.6  # it learned: chance is 0.33

    def dies(done: int, total: int, unit: str) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, taught, tmp_path / "broken", "student", progress=dies)
    half = tmp_path / "broken" / "scratch" / "checkpoint-99"
    half.mkdir()  # a checkpoint that was being written when the power went
    (half / "model.safetensors").write_bytes(b"half")
    run(tiny, taught, tmp_path / "broken", "student")
    for name in ("model/model.safetensors", "history.json", "test_logits.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_baseline_never_sees_the_teacher_and_has_the_same_budget(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sets = ("distill.epochs=1", "distill.patience=99")
    student = run(tiny, taught, tmp_path / "student", "student", *sets)
    baseline = run(tiny, taught, tmp_path / "baseline", "baseline", *sets)
    assert baseline["max_steps"] == student["max_steps"] == baseline["steps"]
    assert all("forward-kl" not in entry for entry in baseline["history"])
    assert any("forward-kl" in entry for entry in student["history"])
    other = load_file(tmp_path / "student" / "test_logits.safetensors")["logits"]
    assert not torch.equal(load_file(tmp_path / "baseline" / "test_logits.safetensors")["logits"], other)


def test_the_best_checkpoint_is_chosen_by_validation(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    # A learning rate that wrecks the model after the first epochs: what is kept must be the best that was seen.
    facts = run(tiny, taught, tmp_path / "a", "student", "distill.learning_rate=0.2", "distill.evaluate_every=0.5")
    seen = trainer.evaluations(facts["history"])
    best = max(entry["eval_accuracy"] for entry in seen)
    assert facts["metrics"]["validation"]["accuracy"] == best


def test_a_training_that_diverges_is_told_with_its_learning_rate(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=r"diverged.* in step \d+\. Lower distill\.learning_rate \(it is 1e\+30\)"):
        run(tiny, taught, tmp_path / "a", "student", "distill.learning_rate=1e30")


def test_every_kind_of_knowledge_trains_from_yaml_and_leaves_no_projection(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = tiny.recipe.replace("distill:\n", "distill:" + EVERY_KIND, 1)
    sets = ("distill.student.hidden_size=16", "distill.student.heads=4", "distill.epochs=2")
    (tmp_path / "a").mkdir()
    parents = {"data": taught.steps["data"], "teach": taught.steps["teach"]}
    inputs = artifact.Inputs(parents, {"kind": "student"})
    facts = stage.run(recipe.parse(text, overrides=sets), inputs, tmp_path / "a")
    told = {term["name"]: term for term in facts["terms"]}
    assert list(told) == ["hard", "forward-kl", "hidden-mse", "hidden-cosine", "attention-kl", "minilm", "rkd-distance"]
    assert sum(term["gradient_share"] for term in told.values()) == pytest.approx(1, abs=1e-4)
    assert told["hidden-mse"]["weight"] == 2
    kept = load_file(tmp_path / "a" / "model" / "model.safetensors")
    assert not any("projection" in name for name in kept)
    assert sum(tensor.numel() for tensor in kept.values()) == facts["parameters"]


def test_an_online_run_is_a_cached_run(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Shuffled, resumed in the middle, and with a teacher that is asked in every step: the same student."""
    online = pipeline.run(recipe.parse(tiny.recipe, overrides=["teach.online=true"]), tmp_path / "run", until="teach")
    cached = run(tiny, taught, tmp_path / "cached", "student")

    def dies(done: int, total: int, unit: str) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, online, tmp_path / "online", "student", "teach.online=true", progress=dies)
    asked = run(tiny, online, tmp_path / "online", "student", "teach.online=true")
    assert asked["steps"] == cached["steps"]
    mine, theirs = (load_file(tmp_path / one / "test_logits.safetensors")["logits"] for one in ("cached", "online"))
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    soft = [[e["forward-kl"] for e in facts["history"] if "forward-kl" in e] for facts in (cached, asked)]
    assert soft[0] == pytest.approx(soft[1], abs=1e-5)


def test_the_last_checkpoint_and_another_seed_may_be_asked_for(tiny, taught, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sets = ("distill.choose=last", "distill.learning_rate=0.2", "distill.evaluate_every=0.5", "distill.patience=99")
    facts = run(tiny, taught, tmp_path / "a", "student", *sets)
    seen = trainer.evaluations(facts["history"])
    assert facts["best"]["step"] == seen[-1]["step"] == facts["max_steps"]
    other = run(tiny, taught, tmp_path / "b", "student", *sets, "distill.seed=5")
    assert [e["forward-kl"] for e in other["history"] if "forward-kl" in e] != [
        e["forward-kl"] for e in facts["history"] if "forward-kl" in e
    ]
    baseline = run(tiny, taught, tmp_path / "c", "baseline", *sets)  # it has no teacher to be steadied by
    best = max(entry["eval_accuracy"] for entry in trainer.evaluations(baseline["history"]))
    assert baseline["metrics"]["validation"]["accuracy"] == best


def test_what_two_modules_share_is_kept_once(tmp_path: Path) -> None:
    class Sharing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.first.register_buffer("scale", torch.rand(3))
            self.second.register_buffer("scale", self.first.scale)

    model, other = Sharing(), Sharing()
    trainer.save_best(model, tmp_path)
    assert load_file(tmp_path / trainer.BEST).keys() == {"first.weight", "first.bias", "first.scale", "second.bias"}
    load_model(other, str(tmp_path / trainer.BEST))
    assert all(torch.equal(other.state_dict()[name], one) for name, one in model.state_dict().items())


def test_a_student_is_judged_in_its_own_precision(tiny, taught, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Trained in bfloat16, evaluated in float32, as the artefacts are made."""
    predict, seen = stage.transformers.predict, []

    def watched(model, *rest, **named):  # type: ignore[no-untyped-def]
        layer = next(one for one in model.modules() if isinstance(one, torch.nn.Linear))
        hook = layer.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
        found = predict(model, *rest, **named)
        hook.remove()
        return found

    monkeypatch.setattr(stage.transformers, "predict", watched)
    run(tiny, taught, tmp_path, "student", "distill.precision=bf16", "distill.max_steps=2")
    assert len(seen) > 2 and set(seen) == {torch.float32}
