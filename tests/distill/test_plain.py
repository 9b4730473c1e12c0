"""A student with modules of edgekd's own, saved for plain transformers, gives the same logits there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from edgekd.distill import plain, pruning, student
from edgekd.errors import BadInput
from edgekd.recipe import Student

IDS = torch.tensor([[2, 11, 45, 7, 3], [2, 9, 3, 0, 0]])
MASK = (IDS > 0).long()


def bert() -> torch.nn.Module:
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    return BertForSequenceClassification(config)


def distilbert() -> torch.nn.Module:
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=3)
    return DistilBertForSequenceClassification(config)


def saved(folder: Path, shape: dict[str, Any], teacher: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    made = student.make(Student(layers=2, **shape), teacher, AutoModelForSequenceClassification, 0).eval()
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("teacher", [bert, distilbert])
@pytest.mark.parametrize("shape", [{"embedding_size": 8}, {"heads": 3}, {"heads": 3, "embedding_size": 8}])
def test_plain_transformers_gives_the_same_logits(teacher: Any, shape: dict[str, Any], tmp_path: Path) -> None:
    made = saved(tmp_path / "student", shape, teacher())
    assert len(plain.changes(json.loads((tmp_path / "student" / "config.json").read_text()))) == len(shape)
    plain.save(tmp_path / "student", tmp_path / "plain", AutoModelForSequenceClassification)
    assert "edgekd" not in (tmp_path / "plain" / "config.json").read_text()
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        wanted, found = (one(input_ids=IDS, attention_mask=MASK).logits for one in (made, loaded))
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_heads_that_no_configuration_describes_are_refused(tmp_path: Path) -> None:
    scores = pruning.Importance(torch.rand(32), (torch.rand(4),) * 2, (torch.rand(64),) * 2)
    shape = Student(layers=2, heads=2, hidden_size=20)
    made = student.make(shape, bert(), AutoModelForSequenceClassification, 0, importance=scores)
    made.save_pretrained(tmp_path / "student")
    with pytest.raises(BadInput, match="2 heads of 8 in a width of 20"):
        plain.save(tmp_path / "student", tmp_path / "plain", AutoModelForSequenceClassification)


def test_most_students_are_plain_already() -> None:
    assert plain.changes(bert().config.to_dict()) == []
