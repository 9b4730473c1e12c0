"""The teach stage: its logits are the teacher's, an interruption changes no byte, rows are paid for once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from edgekd import artifact, pipeline, recipe
from edgekd.teach import cache, stage, transformers

SHARDS = "cache/shard-*.safetensors"


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory) -> artifact.Artifact:  # type: ignore[no-untyped-def]
    run = pipeline.run(recipe.parse(tiny.recipe), tmp_path_factory.mktemp("run"), until="data")
    return run.steps["data"]


def teach(tiny, data, out: Path, **inputs) -> dict:  # type: ignore[no-untyped-def]
    out.mkdir(exist_ok=True)
    return stage.run(recipe.parse(tiny.recipe), artifact.Inputs({"data": data}, **inputs), out)


def test_logits_are_the_teachers_own(tiny, data, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    facts = teach(tiny, data, tmp_path / "a.partial")
    made = artifact.seal(tmp_path / "a", stage="teach", label="", key="k", facts=facts, parents={}, tools={})
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder / "teacher")
    model = AutoModelForSequenceClassification.from_pretrained(tiny.folder / "teacher", dtype=torch.float32).eval()
    rows = stage.read_split(data.path, "test")
    found = cache.read_logits(made, "test")
    for row, logits in list(zip(rows, found, strict=True))[::9]:
        inputs = tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            expected = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    right = [int(one.argmax()) == row["label"] for row, one in zip(rows, found, strict=True)]
    assert facts["metrics"]["test"]["accuracy"] == pytest.approx(sum(right) / len(right))


def test_an_interrupted_teacher_goes_on_to_the_same_bytes(tiny, data, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    teach(tiny, data, whole)
    real, calls = transformers.pad, []

    def dies(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(transformers, "pad", dies)
    with pytest.raises(KeyboardInterrupt):
        teach(tiny, data, broken)
    assert 0 < len(list(broken.glob(SHARDS))) < len(list(whole.glob(SHARDS)))
    teach(tiny, data, broken)
    assert len(calls) - 7 < sum(1 for _ in range(0, 330, 16))  # what was done is not paid again
    for file in whole.glob(SHARDS):
        assert (broken / "cache" / file.name).read_bytes() == file.read_bytes()
    assert (broken / "samples.json").read_bytes() == (whole / "samples.json").read_bytes()


def test_rows_of_an_earlier_step_are_not_paid_again(tiny, data, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    facts = teach(tiny, data, tmp_path / "a.partial")
    first = artifact.seal(tmp_path / "a", stage="teach", label="", key="k", facts=facts, parents={}, tools={})
    again = teach(tiny, data, tmp_path / "b", earlier=[first])
    assert again["reused"] == again["samples"] == facts["samples"]
    other = dataclasses.replace(first, path=tmp_path / "nothing here")
    assert teach(tiny, data, tmp_path / "c", earlier=[other])["reused"] == 0
