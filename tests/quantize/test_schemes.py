"""Every scheme: what it makes of which layer, the same numbers in training and in the Program, and exact integers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from edgekd.errors import BadInput
from edgekd.quantize import integer, program, qat, reference
from edgekd.quantize import scheme as schemes
from edgekd.recipe import Quantize
from edgekd.tasks import text_classification as task

QUANTIZED = [name for name in schemes.SCHEMES if name != "fp32"]
SIZES = {"vocab_size": 60, "num_labels": 3}
MODELS = {
    "bert": lambda: BertForSequenceClassification(
        BertConfig(**SIZES, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(**SIZES, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    ),
}


def rows(count: int = 24) -> list[dict[str, list[int]]]:
    random = np.random.default_rng(0)
    texts = [random.integers(2, 60, size=random.integers(3, 12)).tolist() for _ in range(count)]
    return [{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts]


def float_model(family: str = "bert") -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.ndim > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def prepared(model: nn.Module, scheme: schemes.Scheme) -> nn.Module:
    made = reference.prepare(copy.deepcopy(model), scheme)
    qat.calibrate(made, rows(), 1.0)
    return made.eval()


# What becomes of which layer.


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: layer.kind.name for name, layer in reference.layers(model)}


def test_overrides_are_by_pattern_and_the_last_one_wins() -> None:
    overrides = {"w8a8": {"*.output.dense": "w8a8-dynamic", "bert.encoder.layer.1.*": "w8", "contracting": "w4"}}
    found = kinds(reference.prepare(float_model(), schemes.get("w8a8", Quantize(overrides=overrides))))
    assert found["bert.encoder.layer.0.attention.output.dense"] == "w8a8-dynamic"
    assert found["bert.encoder.layer.1.attention.output.dense"] == "w8"
    assert {name for name, kind in found.items() if kind == "w4"} == {
        f"bert.encoder.layer.{layer}.output.dense" for layer in (0, 1)
    }
    assert found["classifier"] == found["bert.pooler.dense"] == "w8a8"


@pytest.mark.parametrize("name", QUANTIZED)
def test_layers_can_be_left_alone_in_every_scheme(name: str) -> None:
    model = reference.prepare(float_model(), schemes.get(name, Quantize(keep_float=["classifier", "*.query"])))
    assert type(model.classifier) is nn.Linear
    left = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert left == {"classifier", *(f"bert.encoder.layer.{layer}.attention.self.query" for layer in (0, 1))}


def test_groups_that_do_not_fill_fall_back_to_a_scale_per_channel() -> None:
    scheme = schemes.get("w4", Quantize(group=64))
    found = kinds(reference.prepare(float_model(), scheme))  # layers of 32 and of 64 inputs
    assert {kind for name, kind in found.items() if name.endswith("layer.0.output.dense")} == {"w4"}
    assert found["classifier"] == "w8"


def test_what_nobody_knows_is_said_in_one_line() -> None:
    for broken in ({"w8a7": {}}, {"w8a8": {"*": "w8a9"}}):
        with pytest.raises(BadInput, match=r"unknown (scheme|layer) 'w8a[79]'"):
            schemes.get("w8a8", Quantize(overrides=broken))


# The same numbers in training, in the Program and in integers.


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_scheme_is_trained_shipped_and_run_with_the_same_numbers(name: str, family: str) -> None:
    model = float_model(family)
    trained = prepared(model, schemes.get(name))
    shipped = reference.convert(copy.deepcopy(trained))
    exported = program.export(shipped, task, rows()[0], 12)
    integers = program.integer_module(exported)
    batch = qat.pad(rows()[:6], 0)
    with torch.no_grad():
        mine, theirs, goal = trained(**batch).logits, shipped(**batch).logits, model(**batch).logits
    spread = float(goal.max() - goal.min())
    same = (mine - theirs).abs().amax(1) < 1e-5 * spread  # of dynamic layers, ties in the last bit of a scale may flip
    assert same.float().mean() >= (0.8 if name == "w8a8-dynamic" else 1.0)
    assert (mine - goal).abs().max() <= {"fp16": 0.002, "w4": 0.6}.get(name, 0.12) * spread
    alone = torch.stack(program.run(integers, task, rows()[:6]))
    assert (alone - theirs).abs().max() <= 0.05 * spread
    targets = {node.target for node in integers.graph.nodes}
    wanted = {"w8a8": integer.int8_linear, "w8a8-dynamic": integer.int8_linear_tokens}.get(name, integer.LINEAR)
    assert wanted in targets and (wanted is integer.LINEAR or integer.LINEAR not in targets)


def test_a_mixed_program_runs_every_layer_as_its_kind_says() -> None:
    overrides = {"w8a8": {"contracting": "w8a8-dynamic", "*.attention.output.dense": "w8a8-float-output"}}
    model = float_model()
    shipped = reference.convert(prepared(model, schemes.get("w8a8", Quantize(overrides=overrides))))
    integers = program.integer_module(program.export(shipped, task, rows()[0], 12))
    count = [node.target for node in integers.graph.nodes].count
    assert count(integer.int8_linear_tokens) == count(integer.int8_linear_float) == 2
    assert count(integer.int8_linear) == 2 * 4 + 2 and count(integer.LINEAR) == 0


@pytest.mark.parametrize("name", QUANTIZED)
def test_gradients_reach_the_weights_of_every_scheme(name: str) -> None:
    model = prepared(float_model(), schemes.get(name)).requires_grad_(True)
    model(**qat.pad(rows()[:4], 0)).logits.square().sum().backward()
    for layer_name, layer in reference.layers(model):
        if "token_type" not in layer_name:
            assert layer.weight.grad.abs().sum() > 0, layer_name


def test_int4_groups_are_quantized_as_pytorch_does_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 96)
    for factor in (1.0, 0.8):  # the second cuts the largest weights
        scale = reference.group_scale(weight, 32) * factor
        weight_q = reference.quantize_groups(weight, scale)
        zeros = torch.zeros(21, dtype=torch.int32)
        theirs = torch.fake_quantize_per_channel_affine(weight.reshape(21, 32), scale.reshape(-1), zeros, 0, -8, 7)
        mine = weight_q * scale.repeat_interleave(32, 1)
        torch.testing.assert_close(mine, theirs.reshape(7, 96), rtol=0, atol=1e-6)
    whole, nothing = reference.group_scale(weight, 32), torch.zeros(2, 32)
    assert reference.quantize_groups(weight, whole).reshape(21, 32).abs().amax(1).eq(7).all()
    assert reference.quantize_groups(nothing, reference.group_scale(nothing, 32)).eq(0).all()


def test_tokens_get_the_scales_that_pytorch_gives_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 40) * torch.logspace(-3, 2, 50)[:, None] + torch.linspace(-1, 1, 50)[:, None]
    x[0], x[1], x[2] = 0.0, x[1].abs(), -x[2].abs()
    steps, zero = reference.token_numbers(x)
    scale, theirs = reference.qd.choose_qparams_per_token_asymmetric(x, torch.int8)
    torch.testing.assert_close(1 / steps[1:], scale[1:].float(), rtol=3e-7, atol=0)
    assert (zero - theirs).abs().max() <= 1 and (zero == theirs).float().mean() > 0.95
    assert torch.isfinite(steps).all() and ((zero >= -128) & (zero <= 127)).all()


# Exact integers: reference modules against plain numpy, for any shape, scale and zero point.

scales = st.floats(2.0**-14, 8.0, width=32)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 9))  # tokens, inputs, outputs
zeros = st.integers(-128, 127)


def draw(shape: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    tokens, inputs, outputs = shape
    random = np.random.default_rng(seed)
    return {
        "x_q": random.integers(-128, 128, (tokens, inputs)).astype(np.int8),
        "x": (random.normal(size=(tokens, inputs)) * 10.0 ** random.uniform(-3, 2, (tokens, 1))).astype(np.float32),
        "weight_q": random.integers(-127, 128, (outputs, inputs)).astype(np.int8),
        "w_scale": random.uniform(1e-4, 1e-1, outputs).astype(np.float32),
        "bias": random.normal(size=outputs).astype(np.float32),
    }


def tensors(numbers: dict[str, np.ndarray], *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(numbers[name]) for name in names]


def accumulated(x_q: np.ndarray, zero: Any, weight_q: np.ndarray) -> np.ndarray:
    return (x_q.astype(np.int64) - np.asarray(zero, np.int64)) @ weight_q.astype(np.int64).T


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shapes, scales, zeros, scales, zeros, st.integers(0, 2**32 - 1))
def test_static_layers_are_exact(
    shape: tuple[int, int, int], in_scale: float, in_zero: int, out_scale: float, out_zero: int, seed: int
) -> None:
    given_ = draw(shape, seed)
    x_q, weight_q, w_scale, bias = tensors(given_, "x_q", "weight_q", "w_scale", "bias")
    steps = np.rint(given_["bias"].astype(np.float64) / (np.float64(in_scale) * given_["w_scale"].astype(np.float64)))
    total = accumulated(given_["x_q"], in_zero, given_["weight_q"]) + steps.astype(np.int64)
    factor = np.float32(in_scale) * given_["w_scale"]
    as_float = total.astype(np.float32) * factor
    np.testing.assert_array_equal(integer.int8_linear_float(x_q, in_scale, in_zero, weight_q, w_scale, bias), as_float)
    rounded = np.rint(total.astype(np.float32) * (factor / np.float32(out_scale))) + np.float32(out_zero)
    found = integer.int8_linear(x_q, in_scale, in_zero, weight_q, w_scale, bias, out_scale, out_zero)
    np.testing.assert_array_equal(found, np.clip(rounded, -128, 127).astype(np.int8))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shapes, st.booleans(), st.integers(0, 2**32 - 1))
def test_dynamic_layers_are_exact(shape: tuple[int, int, int], biased: bool, seed: int) -> None:
    given_ = draw(shape, seed)
    low = np.minimum(given_["x"].min(1, keepdims=True), np.float32(0))
    high = np.maximum(given_["x"].max(1, keepdims=True), np.float32(0))
    steps = np.float32(255) / (high - low)
    errors = (np.float32(-128) + low * steps) + (np.float32(127) + high * steps)
    zero = np.where(errors > 0, np.float32(-128) - low * steps, np.float32(127) - high * steps)
    zero = np.rint(np.clip(zero, -128, 127))
    x_q = np.clip(np.rint(given_["x"] * steps) + zero, -128, 127).astype(np.int64)
    product = accumulated(x_q, zero, given_["weight_q"]).astype(np.float32) * (np.float32(1) / steps)
    bias = given_["bias"].astype(np.float64) if biased else 0.0
    expected = (product.astype(np.float64) * given_["w_scale"].astype(np.float64) + bias).astype(np.float32)
    x, weight_q, w_scale, bias_O = tensors(given_, "x", "weight_q", "w_scale", "bias")
    found = integer.int8_linear_tokens(x, weight_q, w_scale, bias_O if biased else None)
    np.testing.assert_array_equal(found, expected)
