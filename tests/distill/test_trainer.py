"""The trainer: its loss, its batches, and that an interruption changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from edgekd import artifact, pipeline, recipe
from edgekd.distill import stage, trainer
from edgekd.errors import BadInput
from edgekd.losses.logits import forward_kl
from edgekd.tasks import text_classification as task
from edgekd.teach.cache import read_logits


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory) -> pipeline.Result:  # type: ignore[no-untyped-def]
    return pipeline.run(recipe.parse(tiny.recipe), tmp_path_factory.mktemp("run"), until="teach")


@pytest.fixture
def rows(taught) -> trainer.Rows:  # type: ignore[no-untyped-def]
    data = taught.steps["data"]
    examples = stage.read_split(data.path, "train")
    encoded = task.encode(stage.load_tokenizer(data.path), examples, 16)
    return trainer.Rows(encoded, [e["label"] for e in examples], read_logits(taught.steps["teach"], "train"), 0)


@pytest.fixture
def teacher(tiny):  # type: ignore[no-untyped-def]
    return AutoModelForSequenceClassification.from_pretrained(tiny.folder / "teacher", dtype=torch.float32).eval()


def loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], alpha: float, temperature: float = 2.0
) -> torch.Tensor:
    """The trainer's own compute_loss, without the rest of a trainer."""
    made = object.__new__(trainer.Distiller)
    made.hard_loss, made.alpha, made.temperature, made.terms = task.hard_loss, alpha, temperature, {}
    return made.compute_loss(model, dict(batch))


def test_cached_logits_give_the_loss_of_a_teacher_in_memory_in_any_order(rows, teacher) -> None:  # type: ignore[no-untyped-def]
    student = AutoModelForSequenceClassification.from_config(teacher.config).eval()
    for start in (0, 60, 120):
        picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(start))[:16].tolist()
        batch = rows.collate(picked)
        with torch.no_grad():
            online = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(batch["teacher_logits"], online, atol=1e-5, rtol=1e-5)
        other = batch | {"teacher_logits": online}
        assert loss(student, batch, 0.3).item() == pytest.approx(loss(student, other, 0.3).item(), abs=1e-5)


def test_alpha_mixes_the_hard_and_the_soft_loss(rows, teacher) -> None:  # type: ignore[no-untyped-def]
    batch = rows.collate(list(range(8)))
    student = AutoModelForSequenceClassification.from_config(teacher.config).eval()
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    hard, soft = F.cross_entropy(logits, batch["label"]), forward_kl(logits, batch["teacher_logits"], 2.0)
    for alpha in (0.0, 0.25, 1.0):
        expected = alpha * hard + (1 - alpha) * soft
        assert loss(student, batch, alpha).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(teacher, batch, 0.0).item() == pytest.approx(0.0, abs=1e-6)


def test_padding_and_micro_batches_change_neither_loss_nor_gradient(rows, teacher) -> None:  # type: ignore[no-untyped-def]
    student = AutoModelForSequenceClassification.from_config(teacher.config).eval()

    def gradient(batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        student.zero_grad()
        for batch in batches:
            (loss(student, batch, 0.3) / len(batches)).backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    batch = rows.collate(list(range(8)))
    whole = gradient([batch])
    padded = batch | {k: F.pad(batch[k], (0, 3)) for k in ("input_ids", "attention_mask")}
    torch.testing.assert_close(gradient([padded]), whole, atol=1e-5, rtol=1e-3)
    halves = [rows.collate(list(range(4))), rows.collate(list(range(4, 8)))]
    torch.testing.assert_close(gradient(halves), whole, atol=1e-5, rtol=1e-3)


def test_unlabelled_rows_take_part_in_the_soft_loss_only(rows, teacher) -> None:  # type: ignore[no-untyped-def]
    student = AutoModelForSequenceClassification.from_config(teacher.config).eval()
    batch = rows.collate([0, 1]) | {"label": torch.tensor([-100, -100])}
    assert loss(student, batch, 1.0).item() == 0.0
    assert loss(student, batch, 0.0).item() > 0.0


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
    assert all("kl" not in entry for entry in baseline["history"])
    assert any("kl" in entry for entry in student["history"])
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
