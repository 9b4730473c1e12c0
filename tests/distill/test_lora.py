"""Students that are adapters: one model at the end, as peft's own computes it, and the adapter beside it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _language import LINES, model_of, tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from edgekd import pipeline, recipe
from edgekd.artifact import Artifact, Inputs
from edgekd.distill import lora, stage, student, trainer
from edgekd.errors import BadInput
from edgekd.recipe import Lora

peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'edgekd[llm]')")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model_of("qwen3", tokenizer(folder)).save_pretrained(folder)
    for name, lines in {"text": LINES[:120], "before": LINES[120:180], "held": LINES[180:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line * 3}) + "\n" for line in lines))
    return folder


def language(base: Path, **more: Any) -> recipe.Recipe:
    distill = {
        "student": {"model": str(base)}, "lora": {"rank": 4, "dropout": 0.1}, "max_steps": 12, "batch_size": 8,
        "learning_rate": 3e-3, "temperature": 1.0, "evaluate_every": 0.25, "checkpoint_every": 4, "baseline": False,
    }  # fmt: skip
    before = {"name": "base", "train": str(base / "before.jsonl"), "test": str(base / "held.jsonl")}
    sections = {
        "task": "text-generation",
        "teacher": {"model": str(base)},
        "data": {"train": str(base / "text.jsonl"), "max_length": 48, "replay": [before]},
        "teach": {"tokens": "top:16"},
        "distill": distill | more,
        "quantize": {"schemes": ["w8"]},
        "export": {"targets": ["onnx"]},
    }
    return recipe.parse(json.dumps(sections))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Result:
    return pipeline.run(language(base), tmp_path_factory.mktemp("run"), until="distill")


def test_the_merged_model_is_what_peft_computes_unmerged(base: Path, trained: pipeline.Result) -> None:
    made = trained.steps["distill-student"]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(made.path / "model", dtype=torch.float32)(input_ids=ids).logits
        unmerged = peft.PeftModel.from_pretrained(plain, made.path / "adapter").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, unmerged, atol=2e-4, rtol=1e-4)
    assert (merged - before).abs().max() > 0.1, "it has learned something"
    untouched = ("embed_tokens", "norm")
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (made.path / "model", base))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]) == any(word in name for word in untouched), name


def test_its_facts_say_how_small_it_is(trained: pipeline.Result) -> None:
    made, facts = trained.steps["distill-student"], trained.facts("distill-student")
    # 2 layers of width 64 with 4 heads of 16, 2 of them for keys and values, FFN 96; rank 4
    pairs = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)]
    told = facts["adapter"]  # type: ignore[index]
    assert told["parameters"] == 2 * sum(4 * (a + b) for a, b in pairs) and told["layers"] == 14
    assert told["size_bytes"] == made.file("adapter/adapter_model.safetensors").stat().st_size
    config = json.loads(made.file("adapter/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4 and config["inference_mode"]


def test_checkpoints_hold_what_is_trained_and_resume_to_the_same_bytes(
    base: Path, trained: pipeline.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Artifact = trained.steps["distill-student"]
    inputs = Inputs({name: trained.steps[name] for name in ("data", "teach")}, {"kind": "student"})

    def dies(self: object, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Keeper, "on_step_end", dies)
        with pytest.raises(KeyboardInterrupt):
            stage.run(language(base), inputs, tmp_path)
    kept = load_file(tmp_path / "scratch" / "checkpoint-4" / "model.safetensors")
    assert len(kept) == 2 * 14 and all("lora_" in name for name in kept)
    stage.run(language(base), inputs, tmp_path)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "history.json"):  # replays too
        assert (tmp_path / name).read_bytes() == whole.file(name).read_bytes(), name


def test_a_classifier_learns_its_head_too(tiny: Any, tmp_path: Path) -> None:
    sets = [f"distill.student={{model: {tiny.folder}/teacher}}", "distill.lora={modules: [query, value]}"]
    made = recipe.parse(tiny.recipe, overrides=[*sets, "distill.max_steps=10"])
    result = pipeline.run(made, tmp_path, until="distill")
    folder = result.steps["distill-student"].path
    plain = AutoModelForSequenceClassification.from_pretrained(tiny.folder / "teacher", dtype=torch.float32).eval()
    head = copy.deepcopy(plain.classifier.weight)
    ids = torch.arange(3, 12)[None]
    merged = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    unmerged = peft.PeftModel.from_pretrained(plain, folder / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, unmerged(ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.equal(merged.classifier.weight, head)
    assert result.facts("distill-student")["adapter"]["layers"] == 4  # type: ignore[index]


def test_what_cannot_be_is_refused(base: Path) -> None:
    net = student.load(base, AutoModelForCausalLM)
    with pytest.raises(BadInput, match="no linear layer 'qkv'"):
        lora.inject(net, Lora(modules=["q_proj", "qkv"]), 0)
    for shape in ({"layers": 1}, {"model": str(base), "layers": 1}):
        with pytest.raises(BadInput, match="lora: needs a student"):
            language(base, student=shape)
