"""Mixed precision by sensitivity: which layers a scheme hurts, and the fewest that must be kept in another way.

Every layer is quantized alone, all others in float, and the answers on held-out rows are compared with the float
student's: the distance is its sensitivity. Layers are upgraded in the order of distance per byte that the upgrade
costs. More upgrades never need more, so the smallest number that suffices is found by bisection. The judge
is the calibrated model in our own numbers; training comes after and works on what was assigned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from edgekd.artifact import Facts, Progress
from edgekd.quantize import reference
from edgekd.quantize.scheme import LAYERS, Scheme

Judge = Callable[[nn.Module], dict[str, float]]


def assign(
    make: Callable[[Scheme], nn.Module], scheme: Scheme, max_drop: float, judge: Judge, progress: Progress
) -> tuple[Scheme, Facts]:
    """The scheme with the layers it needs named in its overrides, and what was seen.

    ``make`` gives the prepared and calibrated model of a scheme; ``judge`` its ``drop`` (share of answers that are not
    the float student's) and ``distance``. Facts: ``layers`` (name, distance, drop, extra_bytes; most sensitive first),
    ``trace`` (upgraded, bytes, drop, distance per trial), ``upgraded`` (names), ``reached`` (whether max_drop was).
    """
    model = make(scheme)
    layers = {name: layer for name, layer in reference.layers(model) if layer.kind.name == scheme.name}
    seen = []
    for done, (name, layer) in enumerate(layers.items()):
        seen.append({"name": name, **_alone(model, layer, judge), "extra_bytes": _extra(layer, scheme.upgrade)})
        progress(done + 1, len(layers), "layers")
    seen.sort(key=lambda row: (-row["distance"] / max(row["extra_bytes"], 1), row["name"]))
    trace: list[dict[str, Any]] = []

    def trial(count: int) -> bool:
        chosen = seen[:count]
        found = judge(make(_upgraded(scheme, [row["name"] for row in chosen])))
        size = sum(row["extra_bytes"] for row in chosen)
        trace.append({"upgraded": count, "extra_bytes": size, "drop": found["drop"], "distance": found["distance"]})
        return found["drop"] <= max_drop

    low, high = 0, len(seen)
    reached = trial(0)
    if reached:
        high = 0
    else:
        reached = trial(high)
        while reached and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if trial(middle) else (middle, high)
    names = [row["name"] for row in seen[:high]]
    facts = {"layers": seen, "trace": sorted(trace, key=lambda row: row["upgraded"]), "upgraded": names}
    return _upgraded(scheme, names), {**facts, "reached": reached, "upgrade": scheme.upgrade, "max_drop": max_drop}


def _upgraded(scheme: Scheme, names: list[str]) -> Scheme:
    return replace(scheme, overrides={**scheme.overrides, **dict.fromkeys(names, scheme.upgrade)}, upgrade="")


def _alone(model: nn.Module, layer: reference.QATLinear, judge: Judge) -> dict[str, float]:
    """What the model loses when this layer alone is quantized."""
    others = [other for _, other in reference.layers(model) if other is not layer]
    for other in others:
        other.bypassed = True
    found = judge(model)
    for other in others:
        other.bypassed = False
    return {"distance": found["distance"], "drop": found["drop"]}


def _extra(layer: reference.QATLinear, upgrade: str) -> int:
    """Bytes that the upgrade adds to the stored weights."""
    return layer.weight.numel() * (LAYERS[upgrade].weight_bits - layer.kind.weight_bits) // 8
