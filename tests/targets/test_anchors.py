"""Static int8 inputs with float outputs, spelled for kernels that take the range of each row: the same numbers."""

from __future__ import annotations

from pathlib import Path

import _kinds
import numpy as np
import pytest
import torch
from _programs import FAMILIES, LAYERS, MAX_LENGTH, VOCABULARY

from edgekd.quantize import reference
from edgekd.quantize.integer import int8_linear_tokens
from edgekd.targets._anchors import anchor_ranges
from edgekd.targets._contract import load_program

DYNAMIC = torch.ops.quantized_decomposed.choose_qparams_per_token_asymmetric.default


@pytest.mark.parametrize("family", FAMILIES)
def test_anchored_ranges_keep_every_bit(make_program, family: str) -> None:  # type: ignore[no-untyped-def]
    module = load_program(make_program("w8a8", family, exact=True).path).module()
    ids = torch.from_numpy(np.random.default_rng(0).integers(2, VOCABULARY, size=(3, MAX_LENGTH)))
    mask = torch.ones_like(ids)
    stored = sum(buffer.numel() for buffer in module.buffers() if buffer.dtype == torch.int8)
    with torch.no_grad():
        before = module(ids, mask)
        assert anchor_ranges(module) == LAYERS
        found = sum(buffer.numel() for buffer in module.buffers() if buffer.dtype == torch.int8)
        assert found == stored + LAYERS * 2 * 64  # two columns: no weight is there twice
        assert len(list(module.graph.find_nodes(op="call_function", target=DYNAMIC))) == LAYERS
        assert torch.equal(module(ids, mask), before) and before.unique().numel() > 1
    assert anchor_ranges(module) == 0  # nothing is left to respell


@pytest.mark.parametrize("kind", ["image", "decoder"])
def test_vision_and_decoder_models_too(kind: str, tmp_path: Path) -> None:
    """Ordinary scales: apart from the order of a sum nothing may move."""
    module = load_program(_kinds.make(tmp_path / "program", kind, "w8a8")).module()
    row = _kinds.rows(kind, 1)[0]
    batch = tuple(torch.as_tensor(np.array([row[name]])) for name in _kinds.KINDS[kind].task.INPUTS)
    with torch.no_grad():
        before = module(*batch)
        assert anchor_ranges(module) == {"image": 2, "decoder": 1}[kind]  # patches are wider than the model, too
        assert (module(*batch) - before).abs().max() < 1e-6 * (before.max() - before.min())


@pytest.mark.parametrize("zero", [-128, -37, 0, 90, 127])
def test_a_row_that_ends_with_the_static_range_is_quantized_by_it(zero: int) -> None:
    """Whatever the row holds, its steps and zero point are the static ones exactly: scales have 8 significant bits."""
    torch.manual_seed(zero)
    for raw in torch.logspace(-6, 3, 400):
        scale = reference.short(raw[None])[0]
        assert abs(scale / raw - 1) <= 2**-8
        ends = torch.tensor([(end - zero) * scale for end in (-128, 127)])
        row = torch.cat([torch.empty(64).uniform_(*ends.tolist()), ends])
        steps, found = reference.token_numbers(row)
        assert steps.item() == (1 / scale).item() and found.item() == zero
    assert int8_linear_tokens(row, torch.ones(1, 66, dtype=torch.int8), torch.ones(1), None).shape == (1,)
