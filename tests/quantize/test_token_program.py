"""The generative Program: scales on their grid, one set of numbers for a tied head, and what is saved is what ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _language import LINES, Task, program, student
from safetensors.numpy import load_file

from edgekd.artifact import Artifact, Inputs, read_json, write_atomic
from edgekd.errors import BadInput
from edgekd.quantize import reference, tokens
from edgekd.quantize import scheme as schemes
from edgekd.recipe import Quantize, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(tmp_path_factory.mktemp("tied"), "qwen3")


def test_scales_have_eight_bits_and_are_halves() -> None:
    scale = tokens.grid_scale(torch.rand(10_000) * torch.logspace(-9, 6, 10_000))
    assert torch.equal(scale.bfloat16().float(), scale) and torch.equal(scale.half().float(), scale)
    assert scale.min() >= 2**-14 and torch.isfinite(scale.half()).all()
    inside = torch.linspace(1e-4, 6e4, 9_999)
    assert ((tokens.grid_scale(inside) / inside - 1).abs() <= 2**-8).all()


@pytest.mark.parametrize("scheme", schemes.GENERATIVE)
@pytest.mark.parametrize("tied", [True, False])
def test_folder_holds_integers_times_scales(scheme: str, tied: bool, tmp_path: Path) -> None:
    """Read by transformers alone, every weight is its integer times its scale, exactly; the head has int8 rows."""
    from transformers import AutoModelForCausalLM

    made = program(student(tmp_path / "student", "llama", tied=tied), scheme, tmp_path / "program")
    held = load_file(made / "numbers.safetensors")
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    names = sorted(name.removesuffix(".weight") for name in held if name.endswith(".weight"))
    if scheme == "fp32":
        assert not held
        return
    assert len(names) == 2 * 7 + (1 if tied else 2)
    for name in names:
        weight_q, scale = held[f"{name}.weight"], held[f"{name}.scale"]
        int4 = scheme == "w4" and ".layers." in name
        assert weight_q.dtype == np.int8 and scale.dtype == np.float32
        assert scale.shape == (len(weight_q), weight_q.shape[1] // 32 if int4 else 1)
        assert weight_q.min() >= (-8 if int4 else -127) and weight_q.max() <= (7 if int4 else 127)
        shipped = weight_q.astype(np.float64) * np.repeat(
            scale.astype(np.float64), weight_q.shape[1] // scale.shape[1], 1
        )
        assert np.array_equal(model.get_submodule(name).weight.detach().numpy().astype(np.float64), shipped)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) == tied


def test_narrow_layers_stay_int8(tmp_path: Path) -> None:
    made = program(student(tmp_path / "s", intermediate_size=80), "w4", tmp_path / "p")
    held = load_file(made / "numbers.safetensors")
    assert held["model.layers.0.mlp.down_proj.scale"].shape == (64, 1)
    assert held["model.layers.0.mlp.up_proj.scale"].shape == (80, 2)


def test_training_sees_what_is_shipped(folder: Path) -> None:
    """Between ``prepare`` and ``convert`` the model answers as the converted one, and its weights have gradients."""
    ids = torch.arange(40).reshape(2, 20)
    for name in ("w8", "w4", "w8a8-dynamic"):
        model = tokens.prepare(tokens.load_student(folder), schemes.generative(name)).requires_grad_(True)
        before = model(input_ids=ids).logits
        before.square().mean().backward()
        assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in model.parameters())
        before = before.detach()
        after = tokens.convert(model)[0](input_ids=ids).logits
        assert torch.equal(before, after)
        assert not any(isinstance(one, reference.QATLinear) for one in model.modules())


def test_golden_is_what_transformers_generates(folder: Path, tmp_path: Path) -> None:
    made = program(folder, "w4", tmp_path / "p")
    golden = read_json(made / "golden.json")
    model = tokens.load(made)
    for prompt, written in zip(golden["prompts"], golden["tokens"], strict=True):
        asked = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt))}
        ids = model.generate(**asked, max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=None)
        assert ids[0, len(prompt) :].tolist() == written
        assert 8 <= len(prompt) <= 16
    assert all(gap >= 0 for line in golden["margins"] for gap in line)
    whole = model(input_ids=torch.tensor([golden["prompts"][0]])).logits[0, -1].detach()
    assert (whole - torch.tensor(golden["logits"][0])).abs().max() < 1e-4


def test_dynamic_program_computes_on_int8_tokens(folder: Path, tmp_path: Path) -> None:
    """The numbers are those of w8; ``tokens.load`` rounds its activations, transformers alone does not."""
    dynamic, plain = (program(folder, name, tmp_path / name) for name in ("w8a8-dynamic", "w8"))
    one, other = load_file(dynamic / "numbers.safetensors"), load_file(plain / "numbers.safetensors")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    ids = torch.arange(12)[None]
    rounded, exact = tokens.load(dynamic)(input_ids=ids).logits, tokens.load(plain)(input_ids=ids).logits
    assert 0 < (rounded - exact).abs().max() < 0.1 * (exact.max() - exact.min())


def test_refusals() -> None:
    with pytest.raises(BadInput, match="w8a8 is no scheme"):
        schemes.generative("w8a8")
    with pytest.raises(BadInput, match="group is 64"):
        schemes.generative("w4", Quantize(group=64))
    with pytest.raises(BadInput, match="not smoothed"):
        schemes.generative("w8a8-dynamic", Quantize(smooth=0.5))


def test_stage(folder: Path, tmp_path: Path) -> None:
    """The stage's files and facts, with the real task; its prompts come from test rows and are 20."""
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "model").symlink_to(folder)
    for split in ("train", "validation", "test"):
        rows = [json.dumps({"text": " ".join(LINES[i : i + 2])}) for i in range(30)]
        write_atomic(tmp_path / "data" / f"{split}.jsonl", "\n".join(rows) + "\n")
    parents = {name: Artifact(tmp_path / name, name, "", "", "") for name in ("data", "teach", "distill")}
    inputs, out = Inputs(parents, {"scheme": "w4"}), tmp_path / "out"
    facts: dict[str, Any] = tokens.run(Recipe(task="text-generation", quantize=Quantize(method="ptq")), inputs, out)
    assert {"golden.json", "model", "numbers.safetensors"} <= {file.name for file in out.iterdir()}
    assert {"tokenizer.json", "config.json", "model.safetensors", "chat_template.jinja"} <= {
        file.name for file in (out / "model").iterdir()
    }
    golden = read_json(out / "golden.json")
    assert [len(golden[name]) for name in ("prompts", "tokens", "margins", "logits")] == [20, 20, 20, 3]
    assert {len(line) for line in golden["tokens"]} == {32}
    assert facts["metrics"]["test"]["perplexity"] > 1 and facts["logit_range"] > 0
    assert facts["layers"][0] == {"name": "model.embed_tokens", "kind": "w8", "bits": 8, "group": 0}
    assert facts["layers"][-1] == {"name": "lm_head", "kind": "w8", "bits": 8, "group": 0, "tied": "model.embed_tokens"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gptq", "awq"])
def test_library_choices_survive(folder: Path, how: str, tmp_path: Path) -> None:
    """neural-compressor's int4 weights reach the Program: GPTQ's are nearer to the float student than rounding.

    AWQ's clipping alone has nothing to win on random weights; it must not lose more than a tenth.
    """
    pytest.importorskip("neural_compressor")
    made = {name: program(folder, "w4", tmp_path / name, how=name) for name in (how, "absmax")}
    rows = Task.encode(Task.processor(folder), [{"text": " ".join(LINES[i : i + 3])} for i in range(40)], 64)
    goal = tokens.load_student(folder)
    errors = {}
    for name, path in made.items():
        model, error = tokens.load(path), 0.0
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            error += float((model(input_ids=ids).logits - goal(input_ids=ids).logits).square().mean())
        errors[name] = error
    assert errors[how] < {"gptq": 1.0, "awq": 1.1}[how] * errors["absmax"]
