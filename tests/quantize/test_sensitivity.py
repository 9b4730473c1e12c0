"""Mixed precision: the layer that hurts is found, and no more are upgraded than it takes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgekd import artifact
from edgekd.quantize import reference, sensitivity
from edgekd.quantize import scheme as schemes

W4 = replace(schemes.get("w4"), upgrade="w8")


class Chain(nn.Module):
    """Four layers; the weights of the third hold one outlier in every group, which int4 cannot."""

    def __init__(self, outliers: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.layers[2].weight.data[:, ::32] += outliers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def setting(outliers: float, max_drop: float) -> tuple[schemes.Scheme, artifact.Facts]:
    model = Chain(outliers).eval()
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    goal = model(x).detach()

    def judge(found: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            y = found(x)
        other = (y.argmax(-1) != goal.argmax(-1)).float().mean().item()
        return {"drop": other, "distance": (y - goal).square().mean().item()}

    return sensitivity.assign(
        lambda scheme: reference.prepare(copy.deepcopy(model), scheme), W4, max_drop, judge, artifact.no_progress
    )


def test_the_layer_with_outliers_is_the_one_that_is_upgraded() -> None:
    plain, spiky = setting(0.0, 1.0)[1], setting(3.0, 1.0)[1]
    assert spiky["layers"][0]["name"] == "layers.2"
    assert spiky["layers"][0]["distance"] > 3 * spiky["layers"][1]["distance"]
    assert spiky["upgraded"] == plain["upgraded"] == []  # any drop is allowed
    everything = next(row for row in spiky["trace"] if row["upgraded"] == 0)["drop"]
    scheme, facts = setting(3.0, 0.6 * everything)
    assert facts["reached"] and "layers.2" in facts["upgraded"] and len(facts["upgraded"]) < 4
    assert {scheme.layer(name, 64, 64).name for name in facts["upgraded"]} == {"w8"}
    assert scheme.layer("other", 64, 64).name == "w4"


def test_no_fewer_upgrades_would_do() -> None:
    limit = 0.5 * next(row for row in setting(0.0, 1.0)[1]["trace"] if row["upgraded"] == 0)["drop"]
    _, facts = setting(0.0, limit)
    tried = {row["upgraded"]: row["drop"] for row in facts["trace"]}
    count = len(facts["upgraded"])
    assert tried[count] <= limit < tried[count - 1]
    assert facts["trace"][-1]["extra_bytes"] <= 4 * 64 * 64 // 2
    assert next(r for r in facts["trace"] if r["upgraded"] == count)["extra_bytes"] == count * 64 * 64 // 2


def test_a_drop_that_cannot_be_reached_is_said() -> None:
    _, facts = setting(0.0, -1.0)
    assert facts["reached"] is False and len(facts["upgraded"]) == 4


@pytest.mark.parametrize("name", ["w8a8", "w4"])
def test_a_bypassed_layer_is_the_float_layer(name: str) -> None:
    model = Chain(0.0).eval()
    made = reference.prepare(copy.deepcopy(model), schemes.get(name))
    for _, layer in reference.layers(made):
        layer.bypassed = True
    x = torch.randn(5, 64)
    torch.testing.assert_close(made(x), model(x), rtol=0, atol=0)
