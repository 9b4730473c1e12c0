"""The Program: one exported graph per scheme, its golden examples, and its outputs computed in integers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.quantize.integer import to_integers
from edgekd.quantize.qat import same_length_batches
from edgekd.teach.transformers import pad

FILE, GOLDEN, REFERENCE = "program.pt2", "golden.json", "reference.safetensors"
GOLDEN_TEXTS = 8


class Logits(nn.Module):
    """A transformers model as a plain function of ids and mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export(model: nn.Module, max_length: int, auto_task: str = "text-classification") -> torch.export.ExportedProgram:
    """Export with dynamic batch and sequence (2 to ``max_length``); the example inputs are optimum's for the task."""
    from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig

    config = NormalizedTextConfig(model.config)
    dummy = DummyTextInputGenerator(auto_task, config, batch_size=2, sequence_length=3)
    drawn = [dummy.generate(name, framework="pt", int_dtype="int64") for name in ("input_ids", "attention_mask")]
    example = tuple(torch.ones_like(one) for one in drawn)  # they are random, and are saved: same model, same bytes
    dims = {
        0: torch.export.Dim("batch", min=1, max=4096),
        1: torch.export.Dim("sequence", min=2, max=max_length),
    }
    wrapped = Logits(model.eval().requires_grad_(False)).eval()
    return torch.export.export(wrapped, example, dynamic_shapes={"input_ids": dims, "attention_mask": dims})


def save(program: torch.export.ExportedProgram, out: Path) -> None:
    """Write ``program.pt2``."""
    torch.export.save(program, out / FILE)


def integer_module(program: torch.export.ExportedProgram) -> nn.Module:
    """The Program as a callable that computes in integers."""
    module = program.module()
    return to_integers(module)  # type: ignore[arg-type]


def run(module: nn.Module, encoded: Sequence[dict[str, list[int]]], *, size: int = 64) -> torch.Tensor:
    """Logits [N, C] in row order; batches hold rows of one length, so padding plays no part."""
    out: torch.Tensor | None = None
    with torch.inference_mode():
        for rows in same_length_batches(encoded, size):
            batch = pad([encoded[i] for i in rows], 0)
            logits_BC = module(batch["input_ids"], batch["attention_mask"])
            out = logits_BC.new_empty((len(encoded), logits_BC.shape[1])) if out is None else out
            out[rows] = logits_BC
    assert out is not None
    return out.clone()


def golden(module: nn.Module, texts: Sequence[str], encoded: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """Golden examples spread over the lengths, each run alone."""
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]["input_ids"]), i))
    count = min(GOLDEN_TEXTS, len(order))
    picked = [order[round(k * (len(order) - 1) / max(1, count - 1))] for k in range(count)]
    rows = [encoded[i] for i in picked]
    return {
        "texts": [texts[i] for i in picked],
        "inputs": {name: [row[name] for row in rows] for name in ("input_ids", "attention_mask")},
        "outputs": {"logits": run(module, rows, size=1).tolist()},
    }
