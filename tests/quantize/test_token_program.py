"""The generative Program: scales on their grid, one set of numbers for a tied head, and what is saved is what ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from _language import program, student
from safetensors.numpy import load_file

from edgekd.artifact import read_json
from edgekd.quantize import reference, tokens
from edgekd.quantize import scheme as schemes


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
