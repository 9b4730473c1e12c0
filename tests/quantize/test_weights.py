"""How weights are chosen: never worse than plain rounding, and a library's numbers arrive as they are."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from edgekd.quantize import reference, weights
from edgekd.quantize import scheme as schemes
from edgekd.tasks import text_classification as task

W4, W8 = schemes.get("w4"), schemes.get("w8")


def rows(count: int = 48) -> list[dict[str, list[int]]]:
    random = np.random.default_rng(0)
    texts = [random.integers(2, 60, size=random.integers(4, 12)).tolist() for _ in range(count)]
    return [{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts]


def student() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, num_labels=3
    )
    model = BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.ndim > 1 else parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def chosen(how: str, scheme: schemes.Scheme = W4) -> nn.Module:
    model = student()
    made = reference.prepare(copy.deepcopy(model), scheme)
    weights.choose(made, model, scheme, how, rows(), task, 0)
    return made


def losses(made: nn.Module) -> dict[str, float]:
    """Squared error of what each layer gives for what the float model feeds it."""
    model, found, hooks = student(), {}, []
    for name, layer in reference.layers(made):
        whole = dict(model.named_modules())[name]

        def note(module, arguments, output, name=name, layer=layer):  # type: ignore[no-untyped-def]
            with torch.no_grad():
                found[name] = found.get(name, 0.0) + float((layer(arguments[0]) - output).square().sum())

        hooks.append(whole.register_forward_hook(note))
    with torch.no_grad():
        for row in rows():
            model(**{name: torch.tensor([values]) for name, values in row.items()})
    return found


def test_least_squares_scales_are_never_worse_and_mostly_better() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 96)
    weight[0] = 0.0
    plain, best = reference.group_scale(weight, 32), weights.least_squares(weight, 32)
    error = [weights._error(weight.reshape(-1, 32), scale.reshape(-1)) for scale in (plain, best)]
    assert (error[1] <= error[0]).all() and (error[1][3:] < error[0][3:]).float().mean() > 0.8
    # The smallest error of any scale, by a fine search, is not far.
    fine = torch.stack(
        [weights._error(weight.reshape(-1, 32), plain.reshape(-1) * factor) for factor in np.linspace(0.5, 1.0, 200)]
    ).amin(0)
    assert error[1].sum() <= 1.02 * fine.sum()


@pytest.mark.parametrize("how", weights.LIBRARY)
def test_what_the_library_chose_is_what_is_shipped(how: str) -> None:
    pytest.importorskip("neural_compressor")
    model, made = student(), chosen(how)
    theirs = weights._from_library(model, W4, how, rows(), task, 0)
    shipped = reference.convert(copy.deepcopy(made))
    layers = {name: module for name, module in shipped.named_modules() if isinstance(module, reference.ReferenceLinear)}
    assert (
        set(theirs) <= set(layers) and len(theirs) >= 12
    )  # GPTQ works block by block and leaves pooler and head alone
    for name, (weight_q, scale) in theirs.items():
        assert torch.equal(layers[name].weight_q.float(), weight_q) and torch.equal(layers[name].w_scale, scale)
        assert weight_q.min() >= -8 and weight_q.max() <= 7 and len(weight_q.unique()) > 8


def test_int8_rows_are_carried_as_gptq_chose_them() -> None:
    pytest.importorskip("neural_compressor")
    model, made = student(), reference.prepare(student(), W8)
    assert weights.choose(made, model, W8, "awq", rows(), task, 0) == {}  # there is nothing to cut
    told = weights.choose(made, model, W8, "gptq", rows(), task, 0)
    theirs = weights._from_library(model, W8, "gptq", rows(), task, 0)
    assert told == {"gptq": len(theirs)} == {"gptq": 12}
    shipped = reference.convert(copy.deepcopy(made))
    for name, (weight_q, scale) in theirs.items():
        layer = shipped.get_submodule(name)
        assert torch.equal(layer.weight_q.float(), weight_q) and torch.equal(layer.w_scale, scale[:, 0])
        assert 100 < weight_q.abs().max() <= 127
    plain, better = losses(chosen("absmax", W8)), losses(made)
    assert sum(better.values()) < 0.8 * sum(plain.values())


def test_the_int4_layers_of_a_scheme_of_int8_rows_keep_their_groups() -> None:
    pytest.importorskip("neural_compressor")
    scheme = replace(W8, overrides={"*query": "w4"})
    made = reference.prepare(student(), scheme)
    assert weights.choose(made, student(), scheme, "gptq", rows(), task, 0) == {"mse": 2, "gptq": 10}


def test_a_library_is_asked_once_for_all_mixtures_of_one_student(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = student(), []
    key = "bert.encoder.layer.0.attention.self.key"

    def library(*arguments: object) -> weights.Numbers:
        asked.append(arguments)
        return {key: (torch.randint(-8, 8, (64, 64)).float(), torch.rand(64, 2))}

    monkeypatch.setattr(weights, "_from_library", library)
    found: weights.Numbers = {}
    made = []
    for scheme, others in ((W4, 13), (replace(W4, overrides={"*query": "w8"}), 11)):
        made.append(reference.prepare(copy.deepcopy(model), scheme))
        counted = weights.choose(made[-1], model, scheme, "gptq", rows(), task, 0, found)
        assert counted == {"gptq": 1, "mse": others}
    weights.choose(made[0], model, W4, "gptq", rows(), task, 0)  # nothing kept: it is asked again
    assert len(asked) == 2
    scale = found[key][1]
    assert torch.equal(made[1].get_submodule(key).w_scale, scale)
    assert not torch.equal(made[0].get_submodule(key).w_scale, scale)


def test_gptq_gives_outputs_closer_to_the_float_layers() -> None:
    pytest.importorskip("neural_compressor")
    plain, better = losses(chosen("absmax")), losses(chosen("gptq"))
    assert sum(better.values()) < 0.8 * sum(plain.values())
