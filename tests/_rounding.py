"""What is asked of training with rounding, of whatever kind the student is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekd.quantize import reference, tokens

Trace = list[dict[str, Any]]
FEW = ("quantize.steps=4", "quantize.evaluate_every=4")


def chooses_its_way(trace: Callable[..., Trace]) -> Trace:
    """By name or by the gate; ``trace`` trains a ``w4`` student with these overrides. Returns that of the default."""
    assert [entry["step"] for entry in trace("quantize.method=ptq")] == [0]
    assert [entry["step"] for entry in trace("quantize.method=auto", "gate.max_perplexity_rise={w4: 10.0}")] == [0]
    strict = trace("quantize.method=auto", "gate.max_perplexity_rise={w4: -1.0}")
    assert strict == trace("quantize.method=qad")
    return strict


def goes_on_after_a_kill(train: Callable[..., tuple[nn.Module, Any]], out: Path) -> None:
    """Killed at step 10 and begun again, it ends with the same numbers; ``train`` takes a folder and ``progress``."""
    whole, _ = train(out / "whole")

    def dies(done: int, total: int, unit: str) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(out / "broken", progress=dies)
    assert (out / "broken" / "checkpoint-6" / "COMPLETE").is_file()
    done: list[int] = []
    resumed, _ = train(out / "broken", progress=lambda step, total, unit: done.append(step))
    mine, theirs = resumed.state_dict(), whole.state_dict()
    assert min(done) > 6 and mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def ships(numbers: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Every scale is on its grid, and the model multiplies by what is stored."""
    for name, scale in numbers.items():
        if name.endswith(".scale"):
            layer = name.removesuffix(".scale")
            assert torch.equal(scale, tokens.grid_scale(scale))
            shipped = reference.dequantized(numbers[f"{layer}.weight"], scale)
            assert torch.equal(model.get_submodule(layer).weight, shipped)
