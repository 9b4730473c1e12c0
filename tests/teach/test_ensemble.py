"""Several teachers: the mixture against closed forms, and a whole teach step with a second one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from edgekd import pipeline, recipe
from edgekd.errors import BadInput
from edgekd.teach.cache import read_logits
from edgekd.teach.ensemble import mixture


def member(weight: float, classes: list[int]) -> SimpleNamespace:
    return SimpleNamespace(weight=weight, classes=classes)


def test_equal_teachers_change_nothing() -> None:
    mine = torch.randn(5, generator=torch.Generator().manual_seed(0))
    for how in ("weighted", "confidence"):
        mixed = mixture(mine, [mine + 3.0], [member(2.0, [0, 1, 2, 3, 4])], how)
        torch.testing.assert_close(mixed, mine.log_softmax(-1), atol=1e-6, rtol=1e-5)


def test_weights_average_probabilities() -> None:
    mine, other = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.6, 0.3]).log()
    mixed = mixture(mine, [other], [member(3.0, [0, 1, 2])], "weighted").exp()
    torch.testing.assert_close(mixed, torch.tensor([0.25, 0.5, 0.25]))
    swapped = mixture(mine, [other[[2, 1, 0]]], [member(3.0, [2, 1, 0])], "weighted").exp()
    torch.testing.assert_close(swapped, mixed)  # its labels come in another order


def test_a_member_of_few_labels_shares_out_what_they_have_together() -> None:
    mine, other = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.1, 0.9]).log()
    mixed = mixture(mine, [other], [member(1.0, [0, 1])], "weighted").exp()
    expected = torch.tensor([(0.5 + 0.08) / 2, (0.3 + 0.72) / 2, 0.2])
    torch.testing.assert_close(mixed, expected)


def test_confidence_listens_to_the_surer_one() -> None:
    sure, unsure = torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 0.1, 0.0])
    plain = mixture(unsure, [sure], [member(1.0, [0, 1, 2])], "weighted").exp()
    heard = mixture(unsure, [sure], [member(1.0, [0, 1, 2])], "confidence").exp()
    assert heard[0] > plain[0] > 0.6


def test_a_second_teacher_with_its_own_tokenizer(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "other"
    shutil.copytree(tiny.folder / "teacher", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha() and len(word) > 3][:2]
    first, second = (vocabulary[word] for word in words)
    vocabulary[words[0]], vocabulary[words[1]] = second, first
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = tiny.recipe.replace("teach: {", f"teach: {{members: [{{model: {other}, weight: 0.5}}], ", 1)
    one = pipeline.run(recipe.parse(tiny.recipe), tmp_path / "one", until="teach")
    two = pipeline.run(recipe.parse(text), tmp_path / "two", until="teach")
    alone, mixed = (read_logits(run.steps["teach"], "test") for run in (one, two))
    assert (alone.log_softmax(-1) - mixed.log_softmax(-1)).abs().max() > 1e-4
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(len(mixed)), atol=1e-5, rtol=0)
    facts = two.facts("teach")
    assert facts and facts["teacher"]["members"] == [{"name": str(other), "weight": 0.5}]


def test_a_member_that_knows_another_label_is_refused(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "other"
    shutil.copytree(tiny.folder / "teacher", other)
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {"0": "fruit", "1": "metal", "2": "planet"}
    config["label2id"] = {"fruit": 0, "metal": 1, "planet": 2}
    (other / "config.json").write_text(json.dumps(config))
    text = tiny.recipe.replace("teach: {", f"teach: {{members: [{{model: {other}}}], ", 1)
    with pytest.raises(BadInput, match="its label 'planet' is none of the first teacher's"):
        pipeline.run(recipe.parse(text), tmp_path / "run", until="teach")
