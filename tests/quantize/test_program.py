"""The Program of every kind of task: its signature, its outputs in row order, its golden examples, its patches."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from edgekd.errors import BadInput
from edgekd.quantize import integer, program, qat, reference

LENGTH, SIDE = 12, 8
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**SIZES, "vocab_size": 60, "max_position_embeddings": LENGTH}
TEXT = ("input_ids", "attention_mask")
WORDS = SimpleNamespace(  # every second token is the first of a unit
    INPUTS=TEXT, logits=lambda outputs, inputs: outputs.logits, take=lambda logits, encoded: logits[encoded["units"]]
)
ANSWERS = SimpleNamespace(
    INPUTS=(*TEXT, "token_type_ids"),
    logits=lambda outputs, inputs: torch.stack([outputs.start_logits, outputs.end_logits], -1),
    take=lambda logits, encoded: logits,
)
IMAGES = SimpleNamespace(
    INPUTS=("pixel_values",), logits=lambda outputs, inputs: outputs.logits, take=lambda logits, encoded: logits
)


def tagger() -> nn.Module:
    return seeded(lambda: BertForTokenClassification(BertConfig(**BERT, num_labels=3)))


def reader() -> nn.Module:
    return seeded(lambda: BertForQuestionAnswering(BertConfig(**BERT, num_labels=2)))


def viewer() -> nn.Module:
    return seeded(lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=SIDE, patch_size=4, num_labels=3)))


def seeded(make: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = make().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.ndim > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def texts(count: int = 9) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        n = int(random.integers(3, LENGTH + 1))
        ids, types = random.integers(2, 60, n).tolist(), [0] * (n // 2) + [1] * (n - n // 2)
        made.append(
            {"input_ids": ids, "attention_mask": [1] * n, "token_type_ids": types, "units": list(range(0, n, 2))}
        )
    return made


def images(count: int = 9) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [{"pixel_values": random.normal(size=(3, SIDE, SIDE)).astype(np.float32)} for _ in range(count)]


def test_rows_come_back_in_order_each_with_its_own_units() -> None:
    model, rows = tagger(), texts()
    exported = program.export(model, WORDS, rows[0], LENGTH)
    found = program.run(exported.module(), WORDS, rows)
    for row, one in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = model(**{name: torch.tensor([row[name]]) for name in TEXT}).logits[0, ::2]
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)


def test_a_third_input_reaches_the_model() -> None:
    model, rows = reader(), texts()
    exported = program.export(model, ANSWERS, rows[0], LENGTH)
    found = program.run(exported.module(), ANSWERS, rows)
    for row, one in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = model(**{name: torch.tensor([row[name]]) for name in ANSWERS.INPUTS})
        torch.testing.assert_close(one[:, 0], expected.start_logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(one[:, 1], expected.end_logits[0], rtol=0, atol=1e-5)
    flat = [dict(row, token_type_ids=[0] * len(row["input_ids"])) for row in rows]
    other = program.run(exported.module(), ANSWERS, flat)
    assert all((one - two).abs().max() > 1e-3 for one, two in zip(found, other, strict=True))


def test_signature() -> None:
    tags = program.signature(program.export(tagger(), WORDS, {}, LENGTH), WORDS)
    assert tags == {
        "inputs": [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in TEXT],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", "sequence", 3]}],
    }
    classes = program.signature(program.export(viewer(), IMAGES, images()[0], LENGTH), IMAGES)
    assert classes == {
        "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, SIDE, SIDE]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}],
    }


@pytest.mark.parametrize("kind", ["words", "images"])
def test_golden_examples_are_what_the_program_gives_for_exactly_these_inputs(kind: str, monkeypatch: Any) -> None:
    model, task, rows = (tagger(), WORDS, texts(20)) if kind == "words" else (viewer(), IMAGES, images(20))
    exported = program.export(model, task, rows[0], LENGTH)
    golden = program.golden(exported.module(), task, [f"row {n}" for n in range(20)], rows)
    assert len(golden["texts"]) == len(set(golden["texts"])) == program.GOLDEN_EXAMPLES
    for index, expected in enumerate(golden["outputs"]["logits"]):
        inputs = {name: np.array([values[index]]) for name, values in golden["inputs"].items()}
        tensors = {
            k: torch.from_numpy(v.astype(np.float32 if kind == "images" else np.int64)) for k, v in inputs.items()
        }
        with torch.no_grad():
            np.testing.assert_allclose(model(**tensors).logits[0], expected, rtol=0, atol=1e-5)
    if kind == "words":
        lengths = [len(ids) for ids in golden["inputs"]["input_ids"]]
        assert lengths == sorted(lengths) and {lengths[0], lengths[-1]} == {3, LENGTH}
    else:  # a large image is many numbers in JSON: fewer examples, but never one
        monkeypatch.setattr(program, "GOLDEN_NUMBERS", 4 * 3 * SIDE * SIDE)
        assert len(program.golden(exported.module(), task, ["image"] * 20, rows)["texts"]) == 4
        monkeypatch.setattr(program, "GOLDEN_NUMBERS", 10)
        assert len(program.golden(exported.module(), task, ["image"] * 20, rows)["texts"]) == 2


@pytest.mark.parametrize(("kernel", "bias"), [((4, 4), True), ((2, 4), False)])
def test_a_patch_embedding_is_a_linear_layer(kernel: tuple[int, int], bias: bool) -> None:
    """Oracle: torch's own convolution, in float64 so that only the layout counts."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 7, kernel, stride=kernel, bias=bias).double()
    pixels = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(reference.PatchLinear(convolution)(pixels), convolution(pixels), rtol=1e-12, atol=1e-12)


def test_a_vision_transformer_runs_in_integers_and_stays_close_to_float() -> None:
    model, rows = viewer(), images(16)
    prepared = reference.prepare(copy.deepcopy(model))
    qat.calibrate(prepared, rows, 1.0, IMAGES.INPUTS)
    exported = program.export(reference.convert(prepared), IMAGES, rows[0], LENGTH)
    integers = program.integer_module(exported)
    targets = [node.target for node in integers.graph.nodes]
    assert targets.count(integer.int8_linear) == 6  # five of a layer, the head
    assert targets.count(integer.int8_linear_float) == 2  # the patches, and the contracting layer
    assert not {integer.LINEAR, torch.ops.aten.conv2d.default} & set(targets)
    found = torch.stack(program.run(integers, IMAGES, rows))
    with torch.no_grad():
        expected = model(torch.from_numpy(np.stack([row["pixel_values"] for row in rows]))).logits
    assert F.cosine_similarity(found, expected).min() > 0.99
    assert 0 < (found - expected).abs().max() < 0.1 * (expected.max() - expected.min())


def test_another_convolution_is_refused_by_name() -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    with pytest.raises(BadInput, match=r"'resnet\.embedder\.embedder\.convolution' is a convolution.*fp32 works"):
        reference.prepare(ResNetForImageClassification(config))
    for overlapping in (nn.Conv2d(2, 2, 3, stride=3, padding=1), nn.Conv2d(2, 2, 3, stride=2), nn.Conv1d(2, 2, 3)):
        with pytest.raises(BadInput, match="cannot be w8a8"):
            reference.prepare(nn.Sequential(overlapping))


def test_floats_between_integer_layers_are_rounded_once() -> None:
    """Against the formulas in numpy's float64: PyTorch's own float32 kernels err by more."""
    x = torch.randn(200, 96, generator=torch.Generator().manual_seed(0)) * 5
    wide, weight, bias = x.double().numpy(), torch.linspace(0.5, 2, 96), torch.linspace(-1, 1, 96)
    centred = wide - wide.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    erf = np.vectorize(math.erf)(wide / math.sqrt(2))
    aten = torch.ops.aten
    expected = {
        aten.layer_norm.default: ((x, [96], weight, bias, 1e-12), normed * weight.double().numpy() + bias.numpy()),
        aten.softmax.int: ((x, -1), powers / powers.sum(-1, keepdims=True)),
        aten.gelu.default: ((x,), 0.5 * wide * (1 + erf)),
        aten.tanh.default: ((x,), np.tanh(wide)),
    }
    for operator, (arguments, goal) in expected.items():
        found = integer.rounded_once(operator)(*arguments)
        assert found.dtype == torch.float32
        assert (found.numpy() == goal.astype(np.float32)).mean() > 0.9999, operator
    assert (aten.layer_norm.default(*expected[aten.layer_norm.default][0]).numpy() != normed).any()


def test_a_float_program_stays_as_it_is() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
    module = integer.to_integers(torch.export.export(model, (torch.ones(1, 4),)).module())
    assert [node.target for node in module.graph.nodes if "gelu" in str(node.target)] == [torch.ops.aten.gelu.default]
