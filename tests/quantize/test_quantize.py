"""Quantization: what is trained is what is shipped, and integers are computed as kernels compute them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from edgekd import artifact, pipeline, recipe
from edgekd.errors import BadInput
from edgekd.quantize import integer, program, qat, reference, stage
from edgekd.quantize import scheme as schemes
from edgekd.tasks import text_classification as task

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES, num_labels=3, pad_token_id=0)),
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**SIZES, embedding_size=8, num_labels=3)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3)
    ),
}


def logits(module: nn.Module, rows: list[dict[str, list[int]]], **size: int) -> torch.Tensor:
    """Logits [N, C] of a Program."""
    return torch.stack(program.run(module, task, rows, **size))


def encoded(count: int = 24) -> list[dict[str, list[int]]]:
    random = np.random.default_rng(0)
    rows = [random.integers(2, 60, size=random.integers(3, 12)).tolist() for _ in range(count)]
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request) -> tuple[nn.Module, nn.Module]:  # type: ignore[no-untyped-def]
    """A float model, and the same prepared and calibrated."""
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    for parameter in model.parameters():  # random initialisation is too flat to quantize interestingly
        parameter.data.mul_(4.0) if parameter.ndim > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    prepared = reference.prepare(copy.deepcopy(model))
    qat.calibrate(prepared, encoded(), 1.0)
    return model, prepared.eval()


@pytest.fixture(scope="module")
def exported(pair) -> tuple[nn.Module, torch.export.ExportedProgram]:  # type: ignore[no-untyped-def]
    """The converted model and its Program."""
    converted = reference.convert(copy.deepcopy(pair[1]))
    return converted, program.export(converted, task, encoded()[0], 12)


def test_weights_are_quantized_as_pytorch_does_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 33)
    scale = reference.weight_scale(weight)
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(7, dtype=torch.int32), 0, -127, 127)
    torch.testing.assert_close(reference.quantize_weight(weight, scale) * scale[:, None], theirs, rtol=0, atol=1e-7)
    assert reference.quantize_weight(weight, scale).abs().amax(1).eq(127).all()
    assert reference.quantize_weight(torch.zeros(2, 3), reference.weight_scale(torch.zeros(2, 3))).eq(0).all()


def test_a_range_covers_zero_and_its_scale_is_a_float32() -> None:
    quantizer = reference.ActivationQuantizer()
    for low, high in ((-1.0, 3.0), (0.5, 3.0), (-3.0, -1.0), (0.0, 0.0)):
        quantizer.set_range(low, high)
        scale, zero = quantizer.numbers()
        assert float(np.float32(scale)) == scale and -128 <= zero <= 127
        q0 = reference.qd.quantize_per_tensor(torch.zeros(1), scale, zero, -128, 127, torch.int8)
        assert reference.qd.dequantize_per_tensor(q0, scale, zero, -128, 127, torch.int8).item() == 0.0


def test_activations_are_quantized_as_pytorch_does_it_ties_included() -> None:
    quantizer = reference.ActivationQuantizer()
    for low, high in ((-0.9, 3.3), (-64.0, 63.5), (0.0, 0.7)):  # the second has scale 0.5: a tie at every quarter
        quantizer.set_range(low, high)
        scale, zero = quantizer.numbers()
        x = torch.cat([torch.linspace(1.5 * low - 1, 1.5 * high + 1, 4001), torch.arange(-300, 300) / 4])
        expected = torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)
        assert torch.equal(quantizer(x), expected)
        assert torch.equal(reference._through_int8(x, scale, zero), expected)
        assert len(expected.unique()) == 256


@pytest.mark.parametrize("zero", [7.3, 60.0, 0.0, -7.3, -100.0])
def test_activations_have_the_gradients_of_the_paper(zero: float) -> None:
    torch.manual_seed(0)
    x, gradient = 3 * torch.randn(40, 50), torch.randn(40, 50)
    inputs = [x.clone().requires_grad_(), torch.tensor([0.05], requires_grad=True), torch.tensor([zero])]
    inputs[2].requires_grad_()
    made = reference.FakeQuantize.apply(*inputs, 0.25)
    found = torch.autograd.grad(made, inputs, gradient)
    # LSQ+ (arXiv:2004.09576, equations 4 and 5) in float64, with a zero point for its offset, as PyTorch rounds that.
    exact, at = x.double() * float(torch.tensor(1 / inputs[1].item())), int(zero + 0.5)
    low, high, g = -128 - at, 127 - at, gradient.double()
    steps = exact.float().round().double()
    inside = (steps >= low) & (steps <= high)
    assert 20 < (~inside).sum() < 1000 and (zero >= 0 or (steps == low).any())
    expected = (
        torch.where(inside, gradient, 0.0),
        0.25 * (g * torch.where(inside, steps - exact, steps.clamp(low, high))).sum(),
        0.25 * (g * torch.where(inside, 0.0, -inputs[1].item())).sum(),
    )
    assert torch.equal(found[0], expected[0])
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.double(), theirs.reshape(1), rtol=1e-5, atol=1e-5)
    arguments = (*inputs, -128, 127, 0.25)
    peer = torch._fake_quantize_learnable_per_tensor_affine(*arguments)
    assert torch.equal(made, peer)
    for mine, theirs in zip(found, torch.autograd.grad(peer, inputs, gradient), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_bias_lies_on_the_grid_of_the_accumulator_and_fits_int32() -> None:
    torch.manual_seed(0)
    weight, bias, in_scale = torch.randn(6, 20), torch.randn(6), float(np.float32(0.013))
    bias[4:] = 50.0
    weight[4], weight[5] = 0.0, 1e-9 * torch.randn(20)  # beside such rows a bias does not fit the scale max |w| / 127
    weight_q, scale, rounded = reference.linear_numbers(weight, bias, in_scale)
    integers = rounded.double().numpy() / (np.float64(in_scale) * scale.double().numpy())
    assert np.abs(integers).max() <= 2**30
    # The bias is stored as float32, so a large integer comes back within its 24 bits of precision.
    np.testing.assert_allclose(integers, np.rint(integers), rtol=2**-24, atol=0)
    np.testing.assert_allclose(rounded, bias, rtol=0, atol=float(in_scale * scale.max()) / 2)
    np.testing.assert_array_equal(weight_q[:4], np.rint(weight[:4].numpy() / scale[:4, None].numpy()))
    assert scale.dtype == torch.float32 and torch.isfinite(scale).all() and (scale > 0).all()
    none = reference.linear_numbers(weight, None, in_scale)
    assert none[2].eq(0).all() and torch.equal(none[1][:4], scale[:4])


def test_gradients_pass_straight_through_the_rounding() -> None:
    torch.manual_seed(0)
    layer = reference.prepare(nn.Sequential(nn.Linear(5, 4)))[0]
    layer.input_quantizer.set_range(-8, 8)
    layer.output_quantizer.set_range(-8, 8)
    x = torch.randn(3, 5)
    layer(x).sum().backward()
    expected = layer.input_quantizer(x).sum(0).expand(4, 5)  # d(sum of x W^T + b) / dW, nothing clipped
    torch.testing.assert_close(layer.weight.grad, expected)
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 3.0))
    assert layer.output_quantizer.log_scale.grad.abs() > 0


def test_training_and_shipped_numbers_are_the_same(pair) -> None:  # type: ignore[no-untyped-def]
    _, prepared = pair
    converted = reference.convert(copy.deepcopy(prepared))
    batch = qat.pad(encoded()[:4], 0)
    with torch.no_grad():
        assert torch.equal(prepared(**batch).logits, converted(**batch).logits)
    assert not any(isinstance(module, nn.Linear) for module in converted.modules())


def test_a_coarse_bias_grid_is_trained_with_and_shipped() -> None:
    torch.manual_seed(0)
    layer = reference.prepare(nn.Sequential(nn.Linear(5, 4)))
    layer[0].input_quantizer.set_range(-8000, 8000)  # one step of the bias is then about 0.2
    layer[0].output_quantizer.set_range(-1, 1)
    x = torch.zeros(1, 5)
    with torch.no_grad():
        trained, plain = layer(x), layer[0].output_quantizer(layer[0].bias[None])
        shipped = reference.convert(layer)(x)
    assert torch.equal(trained, shipped)
    assert not torch.equal(trained, plain)


def test_calibration_finds_the_exact_percentile_of_every_token() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(60, 6), nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = self.table(input_ids)
            return self.a(x) + self.b(x)

    torch.manual_seed(0)
    model, rows = Two(), encoded(100)
    values = torch.cat([model.table(torch.tensor(row["input_ids"])).flatten() for row in rows]).detach().numpy()
    for percentile in (1.0, 0.99, 0.9):
        prepared = reference.prepare(copy.deepcopy(model))
        prepared.table.__class__ = nn.Embedding  # leave the values as they are
        qat.calibrate(prepared, rows, percentile)
        low, high = np.quantile(values, [1 - percentile, percentile], method="nearest")
        scale, _ = prepared.a.input_quantizer.numbers()
        assert scale == pytest.approx((high - low) / 255, rel=2**-8)  # of 8 significant bits
        assert prepared.a.input_quantizer is prepared.b.input_quantizer
        assert all(quantizer.observer is None for quantizer in reference.quantizers(prepared))


@pytest.mark.parametrize(("percentile", "parts"), [(1.0, 9), (0.999, 40), (0.99, 7), (0.9, 3), (0.6, 5)])
def test_tails_are_the_ends_of_all_values_sorted(percentile: float, parts: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(3000, 8) ** 3
    values[::7] = values[0]  # ties
    values = values[values[:, 0].argsort()] if parts == 7 else values  # every part has a new extreme
    tails = qat.Tails(percentile, len(values))
    for part in values.tensor_split(parts):
        tails.add(part)
        tails.add(part)  # at once again: counts once
    ordered = values.flatten().sort().values
    rank = round((1 - percentile) * (len(ordered) - 1))
    assert tails.range() == (ordered[rank].item(), ordered[-1 - rank].item())
    assert percentile < 0.99 or len(tails.kept) < len(ordered) // 10


def test_least_squares_ranges_lose_least_of_all_narrower_ones() -> None:
    torch.manual_seed(0)
    values = torch.randn(20_000) ** 3  # tails that a narrower range gives up
    found = qat.Histogram(values.min().item(), values.max().item())
    for part in values.split(1000):
        found.add(part)

    def error(low: float, high: float) -> float:
        quantizer = reference.ActivationQuantizer()
        quantizer.set_range(low, high)
        return float((quantizer(values) - values).square().mean())

    low, high = found.range()
    assert values.min() < low < -1 and 1 < high < values.max()
    shares = np.linspace(0.02, 1.0, 60)
    best = min(error(found.low * a, found.high * b) for a in shares for b in shares)
    assert error(low, high) <= 1.02 * best
    assert error(low, high) < 0.98 * error(found.low, found.high)  # eight bits leave little to win


def test_both_ways_of_calibration_leave_usable_ranges(pair) -> None:  # type: ignore[no-untyped-def]
    model, _ = pair
    with torch.no_grad():
        goal = model(**qat.pad(encoded()[:8], 0)).logits
    errors = {}
    for least in (False, True):
        made = reference.prepare(copy.deepcopy(model))
        qat.calibrate(made, encoded(), 0.99, least_squares=least)
        assert all(quantizer.observer is None for quantizer in reference.quantizers(made))
        with torch.no_grad():
            errors[least] = float((made(**qat.pad(encoded()[:8], 0)).logits - goal).square().mean())
    assert errors[True] <= errors[False]  # one value in fifty is cut by the first


def test_what_a_gelu_reads_is_cut_where_it_is_flat() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(60, 8), nn.Linear(8, 16), nn.Linear(16, 8)
            self.act = nn.GELU()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.down(self.act(self.up(self.table(input_ids))))

    torch.manual_seed(0)
    model = Block()
    with torch.no_grad():
        model.up.weight.mul_(8)
        model.up.bias.sub_(5)
    made = reference.prepare(copy.deepcopy(model), replace(schemes.get("w8a8"), overrides={}))
    made.table.__class__ = nn.Embedding
    qat.calibrate(made, encoded(100), 1.0)
    with torch.no_grad():
        goal = model(**qat.pad(encoded()[:8], 0))

    def low(layer: nn.Module) -> float:
        scale, zero = layer.output_quantizer.numbers()
        return (reference.QMIN - zero) * scale

    def error() -> float:
        with torch.no_grad():
            return float((made(**qat.pad(encoded()[:8], 0)) - goal).square().mean())

    with torch.no_grad():
        before = model.up(model.table.weight)
    assert before.min() < -5 and low(made.up) == pytest.approx(-3, abs=0.05)
    assert low(made.down) < goal.min() + 0.1  # nothing behind it is flat
    cut = error()
    made.up.output_quantizer.set_range(float(before.min()), float(before.max()))
    assert cut < error()


def test_layers_that_read_one_tensor_share_one_scale(pair) -> None:  # type: ignore[no-untyped-def]
    _, prepared = pair
    names = dict(reference.layers(prepared))
    group = [
        m for n, m in names.items() if n.rpartition(".")[2] in ("query", "key", "value", "q_lin", "k_lin", "v_lin")
    ]
    assert len({id(layer.input_quantizer) for layer in group}) == len(group) // 3
    outputs = [layer.output_quantizer for layer in names.values() if layer.kind.output]
    assert (
        len(set(map(id, outputs))) == len(outputs) == len(names) - 2
    )  # the contracting layer of each block gives floats


def test_the_exported_graph_is_canonical_and_survives_the_disk(exported, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    converted, made = exported
    program.save(made, tmp_path)
    graph = torch.export.load(tmp_path / program.FILE).graph
    linears = [node for node in graph.nodes if node.target is integer.LINEAR]
    assert len(linears) == sum(isinstance(m, reference.ReferenceLinear) for m in converted.modules())
    for node in linears:
        assert node.args[0].target is integer.DEQUANTIZE and node.args[0].args[0].target is integer.QUANTIZE
        assert node.args[1].target is integer.DEQUANTIZE_WEIGHT
        outputs = [user.args[1] for user in node.users if user.target is integer.QUANTIZE]
        assert len(outputs) == len(node.users) or not outputs
        for scale in (node.args[0].args[1], *outputs):
            assert float(np.float32(scale)) == scale
    batch = qat.pad(encoded()[:3], 0)
    loaded = torch.export.load(tmp_path / program.FILE).module()
    torch.testing.assert_close(
        loaded(batch["input_ids"], batch["attention_mask"]), converted(**batch).logits, rtol=0, atol=0
    )


def by_hand(x_q, in_scale, in_zero, weight_q, w_scale, bias, out_scale, out_zero):  # type: ignore[no-untyped-def]
    """int8_linear in numpy int64 and float32, written from the paper and not from the code."""
    s_in, s_out, s_w = np.float32(in_scale), np.float32(out_scale), w_scale.astype(np.float32)
    accumulator = (x_q.astype(np.int64) - in_zero) @ weight_q.astype(np.int64).T
    accumulator += np.rint(bias.astype(np.float64) / (np.float64(in_scale) * s_w.astype(np.float64))).astype(np.int64)
    assert np.abs(accumulator).max() < 2**31
    scaled = accumulator.astype(np.float32) * (s_in * s_w / s_out)
    return np.clip(np.rint(scaled) + out_zero, -128, 127).astype(np.int8)


def test_the_integer_layer_is_the_one_in_the_paper() -> None:
    random = np.random.default_rng(0)
    x_q = random.integers(-128, 128, (5, 9, 300)).astype(np.int8)
    weight_q = random.integers(-127, 128, (40, 300)).astype(np.int8)
    w_scale = random.uniform(1e-3, 1e-2, 40).astype(np.float32)
    bias = random.normal(size=40).astype(np.float32)
    numbers = (float(np.float32(0.02)), -7, float(np.float32(0.5)), 11)
    tensors = [torch.from_numpy(value) for value in (x_q, weight_q, w_scale, bias)]
    found = integer.int8_linear(tensors[0], *numbers[:2], *tensors[1:], *numbers[2:])
    expected = by_hand(x_q, *numbers[:2], weight_q, w_scale, bias, *numbers[2:])
    np.testing.assert_array_equal(found.numpy(), expected)
    assert len(np.unique(expected)) > 50


def test_every_layer_of_the_program_runs_in_integers_and_stays_close_to_float(exported) -> None:  # type: ignore[no-untyped-def]
    converted, made = exported
    integers = program.integer_module(made)
    targets = [node.target for node in integers.graph.nodes]
    assert integer.LINEAR not in targets
    layers = [m for m in converted.modules() if isinstance(m, reference.ReferenceLinear)]
    assert targets.count(integer.int8_linear) == sum(m.kind.output for m in layers)
    assert targets.count(integer.int8_linear_float) == sum(not m.kind.output for m in layers) == 2
    rows = encoded()
    step = layers[-1].out_scale
    gap = (logits(integers, rows) - logits(made.module(), rows)).abs()
    assert gap.max() <= 6 * step and gap.mean() <= step  # rounding ties only


class Layer(nn.Module):
    """One canonical layer, with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        self.bias = nn.Parameter(torch.randn(4))
        self.register_buffer("weight_q", torch.randint(-127, 128, (4, 4), dtype=torch.int8))
        self.register_buffer("w_scale", torch.full((4,), 0.01))
        self.register_buffer("w_zero", torch.full((4,), int(wrong == "weight zero")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qd, wrong, int8 = reference.qd, self.wrong, torch.int8
        weight = qd.dequantize_per_channel(self.weight_q, self.w_scale, self.w_zero, 0, -127, 127, int8)
        if wrong != "float input":
            q = qd.quantize_per_tensor(x, 0.1, 0, -128, 127, int8)
            x = qd.dequantize_per_tensor(q, 0.2 if wrong == "input scale" else 0.1, 0, -128, 127, int8)
        if wrong == "float weight":
            weight = self.weight_q.float() * 0.01
        y = torch.nn.functional.linear(x, weight, None if wrong == "bias" else self.bias)
        low = -127 if wrong == "output range" else -128
        q = qd.quantize_per_tensor(y, 0.3, 1, low, 127, int8)
        y = qd.dequantize_per_tensor(q, 0.3, 2 if wrong == "output zero" else 1, -128, 127, int8)
        return y + x if wrong == "second reader" else y


WRONG = "float input, float weight, input scale, output range, output zero, weight zero, bias, second reader"


@pytest.mark.parametrize("wrong", ["", *WRONG.split(", ")])
def test_a_layer_that_is_not_canonical_is_refused(wrong: str) -> None:
    module = torch.export.export(Layer(wrong), (torch.randn(2, 4),)).module()
    if wrong:
        with pytest.raises(ValueError, match=r"half quantized|no bias|as it was|beside|symmetric"):
            integer.to_integers(module)
    else:
        targets = [node.target for node in integer.to_integers(module).graph.nodes]
        assert integer.int8_linear in targets and integer.LINEAR not in targets


def test_a_float_program_stays_as_it_is() -> None:
    model = MODELS["bert"]().eval()
    exported = program.export(model, task, encoded()[0], 12)
    rows = encoded()
    with torch.no_grad():
        alone = torch.cat([model(**qat.pad([row], 0)).logits for row in rows])
    torch.testing.assert_close(logits(program.integer_module(exported), rows), alone, rtol=0, atol=1e-6)


def test_same_model_same_bytes(tmp_path: Path) -> None:
    model = MODELS["bert"]().eval()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        program.save(program.export(model, task, encoded()[0], 12), tmp_path / name)
    assert (tmp_path / "a" / program.FILE).read_bytes() == (tmp_path / "b" / program.FILE).read_bytes()


def test_a_rows_logits_do_not_depend_on_its_neighbours(exported) -> None:  # type: ignore[no-untyped-def]
    integers = program.integer_module(exported[1])
    rows = encoded()
    alone = logits(integers, rows, size=1)
    torch.testing.assert_close(logits(integers, rows), alone, rtol=0, atol=1e-6)
    assert len(alone.unique(dim=0)) > len(rows) // 2  # texts that all look alike would prove nothing


@pytest.fixture(scope="module")
def distilled(tiny, tmp_path_factory) -> pipeline.Result:  # type: ignore[no-untyped-def]
    return pipeline.run(recipe.parse(tiny.recipe), tmp_path_factory.mktemp("run"), until="distill")


def quantize(tiny, distilled, out: Path, *sets: str, progress=artifact.no_progress) -> dict:  # type: ignore[no-untyped-def]
    out.mkdir(exist_ok=True)
    parents = {
        name: distilled.steps[step]
        for name, step in (("data", "data"), ("teach", "teach"), ("distill", "distill-student"))
    }
    return stage.run(
        recipe.parse(tiny.recipe, overrides=sets),
        artifact.Inputs(parents, {"scheme": "w8a8"}, progress=progress),
        out,
    )


def test_the_best_checkpoint_wins_and_ptq_is_one_of_them(tiny, distilled, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    facts = quantize(tiny, distilled, tmp_path / "a")
    distances = {entry["step"]: entry["distance"] for entry in facts["trace"]}
    assert list(distances) == [0, 3, 6]
    best = min(distances, key=lambda step: distances[step])
    assert facts["chosen_step"] == (best if distances[best] < 0.95 * distances[0] else 0)
    wrecked = quantize(
        tiny, distilled, tmp_path / "b", "quantize.learning_rate=0.5", "quantize.scale_learning_rate=0.5"
    )
    assert (wrecked["chosen_step"], wrecked["method"]) == (0, "ptq")
    only = quantize(tiny, distilled, tmp_path / "c", "quantize.steps=0")
    assert (tmp_path / "b" / "golden.json").read_bytes() == (tmp_path / "c" / "golden.json").read_bytes()
    assert [entry["step"] for entry in only["trace"]] == [0]


def test_a_way_is_chosen_by_name_or_by_the_gate(tiny, distilled, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def steps(*sets: str) -> list[int]:
        facts = quantize(tiny, distilled, tmp_path / "-".join(sets).replace("/", ""), *sets)
        return [entry["step"] for entry in facts["trace"]]

    assert steps("quantize.method=ptq") == [0]
    assert steps("quantize.method=auto", "gate.max_accuracy_drop=1.0") == [0]
    assert steps("quantize.method=auto", "gate.max_accuracy_drop=0.0", "quantize.keep_float=[]")[-1] in (0, 6)
    own = ("quantize.hidden_weight=0", "quantize.teacher_weight=0")
    numbers = [
        quantize(tiny, distilled, tmp_path / name, *sets)["trace"]
        for name, sets in (("a", ("quantize.method=qat",)), ("b", own), ("c", ("quantize.method=qad",)))
    ]
    assert numbers[0] == numbers[1] != numbers[2]


def test_sensitive_layers_are_found_and_named(tiny, distilled, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sets = ("quantize.method=ptq", "quantize.mixed={max_drop: 0.0, samples: 40}")
    facts = quantize(tiny, distilled, tmp_path / "mixed", *sets)
    mixed, kinds = facts["mixed"], {layer["name"]: layer["kind"] for layer in facts["layers"]}
    assert {name for name, kind in kinds.items() if kind == "w8a8-dynamic"} == set(mixed["upgraded"])
    assert {row["name"] for row in mixed["layers"]} == {n for n, kind in kinds.items() if kind != "w8a8-float-output"}
    none = quantize(tiny, distilled, tmp_path / "none", *sets[:1], "quantize.mixed={max_drop: 1.0}")
    assert none["mixed"]["upgraded"] == [] and none["mixed"]["reached"]


def test_a_smoothed_student_becomes_a_program_of_the_same_layers(tiny, distilled, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = {}
    for name, *sets in (("plain", "quantize.smooth=0"), ("smooth", "quantize.smooth=0.5")):
        facts = quantize(tiny, distilled, tmp_path / name, *sets)
        graph = torch.export.load(tmp_path / name / program.FILE).graph
        apart = [node for node in graph.nodes if node.name.endswith("_smooth")]  # factors, and the products with them
        apart += [user for node in apart for user in node.users]
        operators = [str(node.target) for node in graph.nodes if node not in apart and node.op != "output"]
        made[name] = operators, [layer["name"] for layer in facts["layers"]]
        assert facts["trace"][0]["agreement"] > 0.9
        found = facts["calibration"].get("smooth")
        layers = facts["layers"]
    assert made["plain"] == made["smooth"]
    assert found["pairs"]["attention"] >= 1 and found["left"] < len(layers)


def test_resumed_quantization_ends_with_the_same_numbers(tiny, distilled, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    quantize(tiny, distilled, tmp_path / "whole")

    def dies(done: int, total: int, unit: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(tiny, distilled, tmp_path / "broken", progress=dies)
    assert (tmp_path / "broken" / "scratch" / "qat.pt").is_file()
    quantize(tiny, distilled, tmp_path / "broken")
    for name in ("golden.json", "reference.safetensors", "program.pt2"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_text_that_no_teacher_has_learned_is_judged_by_and_not_trained_on(tiny, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    sets = ("data.augment={copies: 1}", "distill.max_steps=1", "distill.baseline=false")
    made = pipeline.run(recipe.parse(tiny.recipe, overrides=sets), tmp_path / "run", until="distill")
    count = made.steps["data"].facts["rows"]["augmented"]
    trained: list[qat.Pool] = []
    judged: list[int] = []
    predict, kept = stage.transformers.predict, qat.train
    monkeypatch.setattr(
        qat,
        "train",
        lambda model, student, pools, *a, **k: trained.extend(pools) or kept(model, student, pools, *a, **k),
    )
    monkeypatch.setattr(stage.transformers, "predict", lambda *a, **k: judged.append(len(a[2])) or predict(*a, **k))
    facts = quantize(tiny, made, tmp_path / "out", *sets)
    assert len(trained[1].encoded) == count - count // 10 > 0
    assert set(judged) == {made.steps["data"].facts["rows"]["validation"] + count // 10}
    assert [entry["step"] for entry in facts["trace"]] == [0, 3, 6]


def test_what_is_dropped_is_dropped_on_the_split_alone() -> None:
    def answers(wrong: bool) -> nn.Module:
        class Model(nn.Linear):
            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
                other = wrong & (input_ids[:, 0] == 9)
                return SimpleNamespace(logits=F.one_hot(other.long(), 3).float())

        return Model(1, 1)

    rows = [{"input_ids": [one, 4], "attention_mask": [1, 1]} for one in (5, 6, 9, 9, 7, 9)]
    labels = [{"text": "", "label": 0}] * 2
    judged = stage._judge(task, answers(wrong=False), rows[:2], labels, rows[2:], 0)(answers(wrong=True))
    assert judged["agreement"] == 0.5 and judged["drop"] == 0.0
    assert stage._judge(task, answers(wrong=False), rows[1:3], labels, [], 0)(answers(wrong=True))["drop"] == 0.5


def pool(rows: list[dict[str, list[int]]], teacher: float) -> qat.Pool:
    """Rows for which the teacher always gives the same logits."""
    return qat.Pool(rows, lambda picked: {"logits": torch.full((len(picked), 3), teacher)})


def train(  # type: ignore[no-untyped-def]
    model: nn.Module,
    student: nn.Module,
    pools: list[qat.Pool],
    settings: recipe.Quantize,
    steps: int,
    scratch: Path,
    **own,
) -> list[dict[str, Any]]:
    """``qat.train``; no checkpoint is nearer than another unless ``judge`` says so."""
    others = {"judge": lambda _: {"distance": 0.0}, "progress": artifact.no_progress} | own
    numbers = {"temperature": 1.0, "pad_token_id": 0, "seed": 0}
    return qat.train(model, student, pools, settings, task, steps=steps, scratch=scratch, **numbers, **others)


def test_the_student_is_not_touched(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, _ = pair
    before = copy.deepcopy(model.state_dict())
    prepared = reference.prepare(copy.deepcopy(model))
    qat.calibrate(prepared, encoded(), 1.0)
    settings = recipe.Quantize(evaluate_every=2, batch_size=4, learning_rate=0.1)
    rows = encoded()
    pools = [pool(rows, 0.0)]
    model.requires_grad_(False)
    train(prepared, model, pools, settings, 2, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def loss_of(model: nn.Module, goal: nn.Module, teacher_BC: torch.Tensor, **sets: float) -> float:
    rows = encoded()[:3]
    with torch.no_grad():
        return qat.distance_to(
            model, goal, task, rows, qat.pad(rows, 0), teacher_BC, recipe.Quantize(**sets), 2.0
        ).item()


def test_the_loss_is_zero_only_at_the_float_student_and_has_three_terms(pair) -> None:  # type: ignore[no-untyped-def]
    model, prepared = pair
    with torch.no_grad():
        goal_BC = model(**qat.pad(encoded()[:3], 0)).logits
    assert loss_of(model, model, goal_BC) == pytest.approx(0.0, abs=1e-6)
    logits = loss_of(prepared, model, goal_BC, hidden_weight=0, teacher_weight=0)
    hidden = loss_of(prepared, model, goal_BC, hidden_weight=1, teacher_weight=0) - logits
    assert logits > 0 and hidden > 0
    teacher_BC = goal_BC.roll(1, dims=-1)
    teacher = loss_of(model, model, teacher_BC, hidden_weight=0, teacher_weight=1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher_BC / 2), torch.distributions.Categorical(logits=goal_BC / 2)
    )
    assert teacher == pytest.approx(4 * expected.mean().item(), rel=1e-4)
    both = loss_of(prepared, model, teacher_BC, hidden_weight=3, teacher_weight=0)
    assert both == pytest.approx(logits + 3 * hidden, rel=1e-4)


def test_a_batch_is_half_and_half_and_follows_from_seed_and_step() -> None:
    rows = encoded(20)
    pools = [pool(rows[:10], 0.0), pool(rows[10:], 1.0)]
    for size, ones in ((8, 4), (5, 3), (1, 1)):
        picked, batch, teacher_BC = qat._batch(pools, task, size, 0, 7, 0, torch.device("cpu"))
        assert len(batch["input_ids"]) == len(picked) == size and teacher_BC[:, 0].sum() == ones
    first, again, other = (
        qat._batch(pools, task, 8, 0, step, 0, torch.device("cpu"))[1]["input_ids"] for step in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_a_loss_that_is_not_finite_is_said_in_one_line(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, prepared = pair
    rows = encoded()
    pools = [pool(rows, torch.nan)]
    with pytest.raises(BadInput, match="step 1"):
        train(copy.deepcopy(prepared), model, pools, recipe.Quantize(batch_size=2), 1, tmp_path)


def test_training_that_leads_away_goes_back_and_on_in_smaller_steps(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, prepared = pair
    told = [1.0, 1.2, 0.8, 0.82, 0.9, 0.7]  # worse than the start; a win; within the draw of rows; worse; a win

    def trained(answers: Iterator[float], until: int = 5) -> tuple[list[dict[str, Any]], list[nn.Module]]:
        seen = []

        def judge(one: nn.Module) -> dict[str, float]:
            seen.append(copy.deepcopy(one))
            return {"distance": next(answers)}

        def stops(done: int, total: int, unit: str) -> None:
            if done > until:
                raise KeyboardInterrupt

        made = copy.deepcopy(prepared)
        settings = recipe.Quantize(batch_size=4, evaluate_every=1, learning_rate=0.01)
        trace = train(made, model, [pool(encoded(), 0.0)], settings, 5, tmp_path, judge=judge, progress=stops)
        return trace, [*seen, made]

    def moved(one: nn.Module, other: nn.Module) -> float:
        return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))

    trace, seen = trained(iter(told))
    assert [entry.get("pace") for entry in trace] == [None, 1.0, 0.2, 0.2, 0.2, pytest.approx(0.04)]
    assert moved(seen[2], seen[0]) < 0.5 * moved(seen[1], seen[0])  # from where it was best, in smaller steps
    assert 0 < moved(seen[5], seen[2]) < 0.5 * moved(seen[3], seen[2])
    (tmp_path / "qat.pt").unlink()
    answers = iter(told)
    with pytest.raises(KeyboardInterrupt):
        trained(answers, 2)
    again, resumed = trained(answers)
    assert again == trace and moved(resumed[-1], seen[-1]) == 0


@pytest.mark.parametrize(
    ("distances", "step"),
    [
        ([1.0], 0),
        ([1.0, 0.96, 0.97], 0),  # within what another draw of held-out rows would take back
        ([1.0, 0.94, 0.90], 20),
        ([1.0, 0.90, 0.94], 10),
        ([1.0, 0.90, 0.90], 10),  # the earlier on a tie
        ([1.0, 2.0, 3.0], 0),
    ],
)
def test_training_must_show_itself(distances: list[float], step: int) -> None:
    assert qat.chosen([{"step": 10 * n, "distance": one} for n, one in enumerate(distances)]) == step


def test_a_checkpoint_with_fewer_of_the_students_answers_is_no_win() -> None:
    trace = [(0, 1.0, 0.99), (50, 0.4, 0.98), (100, 0.8, 0.99), (150, 0.7, 0.995)]
    told = [{"step": step, "distance": distance, "agreement": agreed} for step, distance, agreed in trace]
    assert qat.chosen(told) == 150
    assert qat.chosen(told[:2]) == 0
