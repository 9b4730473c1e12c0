"""SmoothQuant: the same function from other parameters, folded wherever only linear layers read what was scaled."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pydantic
import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from edgekd import recipe
from edgekd.quantize import program, qat, reference, smooth
from edgekd.quantize import scheme as schemes
from edgekd.tasks import image_classification, text_classification

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "num_labels": 3}
TEXT = {"vocab_size": 60, **SIZES}
DISTIL = {"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "num_labels": 3}
LLAMA = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**TEXT)),
    "relu": lambda: BertForSequenceClassification(BertConfig(**TEXT, hidden_act="relu", attn_implementation="eager")),
    "albert": lambda: AlbertForSequenceClassification(AlbertConfig(**TEXT, embedding_size=8)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=4)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA)),
}
# What is scaled by what lies between, and the linear layers that read what they read before.
PAIRS = {
    "bert": ({"attention": 2, "norm": 1, "product": 4}, 2 + 1),  # only the pooler reads the last norm
    "relu": ({"attention": 2, "norm": 1, "product": 4, "relu": 2}, 1),
    "albert": ({"norm": 1}, 6 + 2),  # that of the embeddings; its one layer is used twice
    "distilbert": ({"attention": 2, "norm": 1, "product": 4, "relu": 1}, 2),  # a ReLU in its head
    "vit": ({"attention": 2, "norm": 5}, 2),  # behind GELU
    "llama": ({"attention": 2, "gate": 2, "norm": 5}, 0),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.ndim > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def rows(task, count: int = 24) -> list[dict]:  # type: ignore[no-untyped-def, type-arg]
    random = np.random.default_rng(0)
    if task is image_classification:
        return [{"pixel_values": random.normal(size=(3, 8, 8)).astype(np.float32)} for _ in range(count)]
    texts = [random.integers(2, 60, size=random.integers(3, 12)).tolist() for _ in range(count)]
    return [{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts]


def task_of(name: str):  # type: ignore[no-untyped-def]
    return image_classification if name == "vit" else text_classification


def outputs(model: nn.Module, task) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Logits [N, C] in the model's precision, one row at a time."""
    kind = next(model.parameters()).dtype
    found = []
    for row in rows(task):
        batch = qat.pad([row], 0, task.INPUTS)
        with torch.no_grad():
            found.append(model(**{n: x.to(kind) if x.is_floating_point() else x for n, x in batch.items()}).logits)
    return torch.cat(found)


def fold(model: nn.Module, task, alpha: float = 0.5, scheme: str = "w8a8"):  # type: ignore[no-untyped-def]
    return smooth.fold(model, schemes.get(scheme), alpha, rows(task), task, 12)


@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_and_every_pair_is_found(name: str) -> None:
    task, model = task_of(name), made(name)
    smoothed = copy.deepcopy(model)
    pairs, left = PAIRS[name]
    assert fold(smoothed, task) == {"alpha": 0.5, "pairs": pairs, "left": left}
    goal, found = (outputs(one, task) for one in (model, smoothed))
    assert goal.std() > 0.05 and torch.equal(found, goal)  # factors are powers of two
    changed = sum(not torch.equal(a, b) for a, b in zip(model.parameters(), smoothed.parameters(), strict=True))
    assert changed >= 2 * sum(pairs.values()) - pairs.get("product", 0)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in smoothed.named_modules()]


def planted() -> nn.Module:
    """A vision transformer whose norms give one channel that is 50 times the others, and whose readers know it."""
    model = made("vit")
    for layer in model.vit.layers:
        attention = layer.attention
        for norm, readers in (
            (layer.layernorm_before, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.layernorm_after, (layer.mlp.fc1,)),
        ):
            norm.weight.data[3] *= 50.0
            norm.bias.data[3] *= 50.0
            for reader in readers:
                reader.weight.data[:, 3] /= 50.0
    return model


def error(scheme: str, alpha: float | None) -> float:
    """Mean |logit difference| to the float model, calibrated only."""
    task, model = image_classification, planted()
    goal = outputs(model, task)
    if alpha:
        fold(model, task, alpha, scheme)
    prepared = reference.prepare(model, schemes.get(scheme))
    qat.calibrate(prepared, rows(task), 1.0, task.INPUTS)
    return (outputs(prepared, task) - goal).abs().mean().item()


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_a_channel_of_outliers_costs_little_once_it_is_smoothed(scheme: str) -> None:
    assert error(scheme, 0.5) < error(scheme, None) / 6


SIZE = 8
CASES = {  # kind of pair, how many of its channels are free, and how many layers read them
    "plain": ("linear", SIZE, 1),
    "heads": ("linear", SIZE, 1),  # channels in another order
    "part": ("linear", SIZE - 2, 1),  # two of them are an output
    "gate": ("gate", SIZE, 1),
    "relu": ("relu", SIZE, 1),
    "weighted": ("gate", SIZE, 2),  # read as they are, and times a parameter
    "tanh": None,
    "square": None,
    "residual": None,
    "twice": None,  # a reader used at two places
    "tokens": None,  # tokens in place of channels
    "query": None,  # of an attention, that is
    "integers": None,
}


class Pair(nn.Module):
    def __init__(self, case: str) -> None:
        super().__init__()
        self.case, self.weights = case, nn.Parameter(torch.randn(SIZE))
        self.up, self.down, self.last = (nn.Linear(SIZE, SIZE) for _ in range(3))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, T, SIZE] with as many tokens as channels."""
        x = pixel_values
        y = self.up(x)
        match self.case:
            case "heads":
                y = y.view(-1, SIZE, 2, SIZE // 2).transpose(-1, -2).reshape(-1, SIZE, SIZE)
            case "part":
                return self.down(y) + y[..., :2].sum(-1, keepdim=True)
            case "gate":
                y = x.sigmoid() * y
            case "relu" | "tanh":
                y = getattr(y, self.case)()
            case "square":
                y = y * y
            case "residual":
                return self.down(y) + y
            case "weighted":
                return self.down(y) + self.last(self.weights * y)
            case "integers":
                y = y.to(torch.int32).to(x.dtype)
            case "twice":
                return self.down(self.down(y).tanh())
            case "tokens":
                y = y.transpose(-1, -2)
            case "query":
                y = nn.functional.scaled_dot_product_attention(y[:, None], x[:, None], x[:, None])[:, 0]
        found: torch.Tensor = self.down(y)
        return found


@pytest.mark.parametrize("case", CASES)
def test_only_channels_that_nothing_else_reads_are_scaled(case: str) -> None:
    torch.manual_seed(0)
    task = SimpleNamespace(INPUTS=("pixel_values",), logits=lambda output, inputs: output)
    model = Pair(case).eval()
    batch = [{"pixel_values": np.random.default_rng(i).normal(size=(SIZE, SIZE)).astype(np.float32)} for i in range(4)]
    found = [(one.kind, int(one.free.sum()), len(one.readers)) for one in smooth.sources(model, task, batch[0], 4)]
    assert found == ([CASES[case]] if CASES[case] else [])
    smoothed = copy.deepcopy(model)
    facts = smooth.fold(smoothed, schemes.get("w8a8"), 0.7, batch, task, 4)
    assert sum(facts["pairs"].values()) == len(found) and facts["left"] == 3 - sum(readers for _, _, readers in found)
    x = torch.stack([torch.from_numpy(row["pixel_values"]) for row in batch]).double()
    with torch.no_grad():
        torch.testing.assert_close(smoothed.double()(x), model.double()(x), rtol=0, atol=1e-6)
    assert torch.equal(smoothed.up.weight, model.up.weight) == (not found)


def test_factors_are_the_papers_in_powers_of_two_and_zero_channels_stay() -> None:
    torch.manual_seed(0)
    model, task = Pair("relu").eval(), SimpleNamespace(INPUTS=("pixel_values",), logits=lambda output, inputs: output)
    model.up.bias.data[2] = -100.0  # a neuron that never fires
    model.down.weight.data[:, 5] *= 9.0
    batch = [{"pixel_values": np.random.default_rng(i).normal(size=(SIZE, SIZE)).astype(np.float32)} for i in range(4)]
    before, x = copy.deepcopy(model), torch.stack([torch.from_numpy(row["pixel_values"]) for row in batch])
    smooth.fold(model.requires_grad_(False), schemes.get("w8a8"), 0.3, batch, task, 4)
    with torch.no_grad():
        largest = before.up(x).relu().amax((0, 1))
    factor = 2 ** (largest**0.3 / before.down.weight.abs().amax(0) ** 0.7).log2().round()
    factor[2] = 1.0
    assert len(factor.unique()) > 2
    assert torch.equal(model.down.weight, before.down.weight * factor)
    assert torch.equal(model.up.weight, before.up.weight / factor[:, None])
    assert torch.equal(model.up.bias, before.up.bias / factor)


def test_layers_without_int8_activations_ask_for_nothing() -> None:
    model = made("distilbert")
    before = copy.deepcopy(model.state_dict())
    assert fold(model, text_classification, scheme="w4") == {"alpha": 0.5, "pairs": {}, "left": 0}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_scheme_says_how_much_where_the_recipe_does_not() -> None:
    assert schemes.get("w8a8", recipe.Quantize()).smooth == 0.75
    assert schemes.get("w8a8-dynamic", recipe.Quantize()).smooth == 0
    assert [schemes.get("w8a8", recipe.Quantize(smooth=alpha)).smooth for alpha in (0, 0.5)] == [0, 0.5]


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_what_a_residual_reads_too_is_scaled_by_its_static_readers(scheme: str) -> None:
    """One exact product for those that read one tensor; the Program computes what the layers in training do."""
    model = made("bert")
    facts = fold(model, text_classification, 0.75, scheme)
    assert facts["pairs"].get("product") == (4 if scheme == "w8a8" else None)
    prepared = reference.prepare(copy.deepcopy(model), schemes.get(scheme))
    layer = prepared.bert.encoder.layer[0].attention.self
    if scheme == "w8a8":
        assert torch.equal(layer.query.smooth, layer.key.smooth)
        assert all(float(one).hex().startswith("0x1.0000000000000p") for one in layer.query.smooth)
    qat.calibrate(prepared, rows(text_classification), 1.0, text_classification.INPUTS)
    goal = outputs(prepared, text_classification)
    found = outputs(reference.convert(prepared), text_classification)
    if scheme == "w8a8":
        torch.testing.assert_close(found, goal)
    prepared.double().float()  # as from an accelerator and back: a buffer for each layer
    exported = program.export(prepared, text_classification, rows(text_classification)[0], 12)
    buffers = exported.graph_signature.inputs_to_buffers
    products = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    scaled = [len(node.users) for node in products if buffers.get(node.args[1].name, "").endswith("smooth")]
    assert scaled == ([3, 1, 3, 1] if scheme == "w8a8" else [])


@pytest.mark.parametrize("kind", ["fp32", "w8", "w8a8-dynamic"])
def test_a_layer_that_is_not_static_after_all_has_its_own_weights_back(kind: str) -> None:
    model = made("bert")
    before = copy.deepcopy(model.state_dict())
    fold(model, text_classification, 0.75)
    scheme = replace(schemes.get("w8a8"), overrides={"*.query": kind})
    layer = reference.prepare(model, scheme).bert.encoder.layer[0].attention.self
    assert "smooth" not in dict(layer.query.named_buffers()) and "smooth" in dict(layer.key.named_buffers())
    assert torch.equal(layer.query.weight, before["bert.encoder.layer.0.attention.self.query.weight"])
    assert not torch.equal(layer.key.weight, before["bert.encoder.layer.0.attention.self.key.weight"])


class Products(torch.nn.Module):
    """One input times buffers: equal ones, the beginning of another, and one that no state dict keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("several", torch.arange(1.0, 5.0))
        self.register_buffer("equal", self.several.clone())
        self.register_buffer("view", self.several[:1])
        self.register_buffer("single", torch.tensor(3.0), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = pixel_values
        return x * self.several + (x * self.equal).relu() - x * self.view + x * self.single


def test_only_equal_products_are_made_once() -> None:
    """By value: a model that was on an accelerator has a tensor for each layer again."""
    model, task = Products(), SimpleNamespace(INPUTS=("pixel_values",), logits=lambda output, inputs: output)
    exported = program.export(model, task, {"pixel_values": np.zeros(4, np.float32)}, 4)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exported.module()(x), model(x))
    assert len(exported.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)) == 3


@pytest.mark.parametrize("alpha", [1.0, -0.5, "much"])
def test_a_strength_outside_of_zero_and_one_is_refused(alpha: object) -> None:
    with pytest.raises(pydantic.ValidationError, match="smooth"):
        recipe.Quantize(smooth=alpha)
