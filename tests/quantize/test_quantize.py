"""Quantization: what is trained is what is shipped, and integers are computed as kernels compute them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from edgekd import artifact, pipeline, recipe
from edgekd.quantize import integer, program, qat, reference, stage

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
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3)
    ),
}


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
        parameter.data.mul_(4.0) if parameter.ndim > 1 else parameter.data.add_(
            0.1 * torch.randn_like(parameter)
        )
    prepared = reference.prepare(copy.deepcopy(model))
    qat.calibrate(prepared, encoded(), 1.0, seed=0)
    return model, prepared.eval()


def test_weights_are_quantized_as_pytorch_does_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 33)
    scale = reference.weight_scale(weight)
    theirs = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(7, dtype=torch.int32), 0, -127, 127
    )
    torch.testing.assert_close(reference.fake_weight(weight), theirs, rtol=0, atol=1e-7)
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


def test_training_and_shipped_numbers_are_the_same(pair) -> None:  # type: ignore[no-untyped-def]
    _, prepared = pair
    converted = reference.convert(copy.deepcopy(prepared))
    batch = qat.pad(encoded()[:4], 0)
    with torch.no_grad():
        trained, shipped = prepared(**batch).logits, converted(**batch).logits
    step = max(
        layer.out_scale for layer in converted.modules() if isinstance(layer, reference.ReferenceLinear)
    )
    # The bias moves to the int32 grid on conversion, far below one output step; nothing else may differ.
    assert (trained - shipped).abs().max() <= 1.01 * step
    assert (trained - shipped).abs().mean() <= 0.1 * step


def test_layers_that_read_one_tensor_share_one_scale(pair) -> None:  # type: ignore[no-untyped-def]
    _, prepared = pair
    names = dict(reference.layers(prepared))
    group = [
        m
        for n, m in names.items()
        if n.rpartition(".")[2] in ("query", "key", "value", "q_lin", "k_lin", "v_lin")
    ]
    assert len({id(layer.input_quantizer) for layer in group}) == len(group) // 3
    assert len({id(layer.output_quantizer) for layer in names.values()}) == len(names)


def test_the_exported_graph_is_canonical_and_survives_the_disk(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, prepared = pair
    converted = reference.convert(copy.deepcopy(prepared))
    program.save(program.export(converted, 12), tmp_path)
    graph = torch.export.load(tmp_path / program.FILE).graph
    linears = [node for node in graph.nodes if node.target is integer.LINEAR]
    assert len(linears) == sum(isinstance(m, reference.ReferenceLinear) for m in converted.modules())
    for node in linears:
        assert node.args[0].target is integer.DEQUANTIZE and node.args[0].args[0].target is integer.QUANTIZE
        assert node.args[1].target is integer.DEQUANTIZE_WEIGHT
        assert [user.target for user in node.users] == [integer.QUANTIZE]
    batch = qat.pad(encoded()[:3], 0)
    loaded = torch.export.load(tmp_path / program.FILE).module()
    torch.testing.assert_close(
        loaded(batch["input_ids"], batch["attention_mask"]), converted(**batch).logits, rtol=0, atol=0
    )


def by_hand(x_q, in_scale, in_zero, weight_q, w_scale, bias, out_scale, out_zero):  # type: ignore[no-untyped-def]
    """int8_linear in numpy int64 and float32, written from the paper and not from the code."""
    s_in, s_out, s_w = np.float32(in_scale), np.float32(out_scale), w_scale.astype(np.float32)
    accumulator = (x_q.astype(np.int64) - in_zero) @ weight_q.astype(np.int64).T
    accumulator += np.rint(bias.astype(np.float64) / (np.float64(in_scale) * s_w.astype(np.float64))).astype(
        np.int64
    )
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


def test_every_layer_of_the_program_runs_in_integers_and_stays_close_to_float(pair) -> None:  # type: ignore[no-untyped-def]
    _, prepared = pair
    converted = reference.convert(copy.deepcopy(prepared))
    exported = program.export(converted, 12)
    integers = program.integer_module(exported)
    targets = [node.target for node in integers.graph.nodes]
    assert integer.LINEAR not in targets
    assert targets.count(integer.int8_linear) == sum(
        isinstance(m, reference.ReferenceLinear) for m in converted.modules()
    )
    rows = encoded()
    step = [m.out_scale for m in converted.modules() if isinstance(m, reference.ReferenceLinear)][-1]
    gap = (program.run(integers, rows) - program.run(exported.module(), rows)).abs()
    assert gap.max() <= 6 * step and gap.mean() <= step  # rounding ties only


def test_a_half_quantized_layer_is_refused() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(reference._through_int8(x, 0.1, 0), self.weight, self.bias)

    with pytest.raises(ValueError, match="half quantized"):
        integer.to_integers(torch.export.export(Half(), (torch.randn(2, 4),)).module())


def test_a_rows_logits_do_not_depend_on_its_neighbours(pair) -> None:  # type: ignore[no-untyped-def]
    _, prepared = pair
    integers = program.integer_module(program.export(reference.convert(copy.deepcopy(prepared)), 12))
    rows = encoded()
    torch.testing.assert_close(
        program.run(integers, rows), program.run(integers, rows, size=1), rtol=0, atol=1e-6
    )


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
    kls = {entry["step"]: entry["kl"] for entry in facts["trace"]}
    assert list(kls) == [0, 3, 6]
    assert facts["chosen_step"] == min(kls, key=lambda step: kls[step])
    wrecked = quantize(
        tiny, distilled, tmp_path / "b", "quantize.learning_rate=0.5", "quantize.scale_learning_rate=0.5"
    )
    assert (wrecked["chosen_step"], wrecked["method"]) == (0, "ptq")
    only = quantize(tiny, distilled, tmp_path / "c", "quantize.steps=0")
    assert (tmp_path / "b" / "golden.json").read_bytes() == (tmp_path / "c" / "golden.json").read_bytes()
    assert [entry["step"] for entry in only["trace"]] == [0]


def test_resumed_quantization_ends_with_the_same_numbers(tiny, distilled, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    quantize(tiny, distilled, tmp_path / "whole")

    def dies(done: int, total: int, unit: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(tiny, distilled, tmp_path / "broken", progress=dies)
    assert (tmp_path / "broken" / "scratch" / "qat.pt").is_file()
    quantize(tiny, distilled, tmp_path / "broken")
    for name in ("golden.json", "reference.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_student_is_not_touched(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, _ = pair
    before = copy.deepcopy(model.state_dict())
    prepared = reference.prepare(copy.deepcopy(model)).train()
    qat.calibrate(prepared, encoded(), 1.0, seed=0)
    settings = recipe.Quantize(steps=2, evaluate_every=2, batch_size=4, learning_rate=0.1)
    rows = encoded()
    pools = [qat.Pool(rows, torch.zeros(len(rows), 3))]
    model.requires_grad_(False)
    qat.train(
        prepared,
        model,
        pools,
        settings,
        temperature=1.0,
        pad_token_id=0,
        seed=0,
        scratch=tmp_path,
        judge=lambda m: {"kl": 0.0},
        progress=artifact.no_progress,
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
