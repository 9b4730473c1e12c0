"""Where a training step gets the teacher's knowledge: from the cache, or from the teacher itself.

Both give the same thing for the same rows: ``{"logits": outputs, "hidden:6:cls": [B, H], "key:6": [B, S, H], ...}``.
From the cache it costs a gather; online it costs the teacher's forward pass, and no disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from edgekd.artifact import Artifact, read_json
from edgekd.teach import cache, sparse
from edgekd.teach.knowledge import capture
from edgekd.teach.transformers import Encoded, gather, inputs_of

Knowledge = dict[str, Any]


class Source(Protocol):
    """The teacher's knowledge of training rows."""

    def __call__(self, rows: Sequence[int]) -> Knowledge:
        """Knowledge of these rows, in this order, padded to their longest."""
        ...


class Cached:
    """Knowledge read from the teach step's cache; fp16 tensors stay fp16 until a batch is made."""

    def __init__(self, teach: Artifact, splits: Sequence[str], names: Sequence[str]) -> None:
        samples = read_json(teach.file(cache.SAMPLES))
        store = cache.Cache(teach.path / cache.FOLDER, samples["identity"])
        ids = [one for split in splits for one in samples["splits"][split]]
        self.kept = {name: store.read(name, ids) for name in names}

    def __call__(self, rows: Sequence[int]) -> Knowledge:
        found: Knowledge = {}
        for name, kept in self.kept.items():
            if isinstance(kept, torch.Tensor):
                found[name] = kept[list(rows)].float()
            else:
                one = [kept[row] for row in rows]
                if sparse.is_kind(name):
                    found[name] = one
                    continue
                found[name] = [each.float() for each in one] if name == "logits" else _padded(name, one).float()
        return found


class Online:
    """Knowledge computed in every step by the teacher, which stays in memory; it gets no gradient and no dropout."""

    def __init__(
        self, teacher: torch.nn.Module, task: Any, encoded: Sequence[Encoded], pad_token_id: int, names: Sequence[str]
    ) -> None:
        self.teacher, self.task, self.encoded = teacher.eval().requires_grad_(False), task, encoded
        self.pad_token_id, self.names = pad_token_id, [name for name in names if name != "logits"]

    @torch.no_grad()
    def __call__(self, rows: Sequence[int]) -> Knowledge:
        encoded = [self.encoded[row] for row in rows]
        inputs = inputs_of(self.teacher, encoded, self.pad_token_id, self.task.INPUTS)
        with capture(self.teacher, self.names) as captured:
            logits = self.task.logits(self.teacher(**inputs), inputs).float()
        outputs = [self.task.take(one, row) for one, row in zip(logits, encoded, strict=True)]
        return {"logits": gather(self.task, outputs), **{name: captured[name].float() for name in self.names}}


def _padded(name: str, rows: list[torch.Tensor]) -> torch.Tensor:
    """Ragged [S, H] rows as [B, S, H]; attention maps [S * S, heads] as [B, heads, S, S]."""
    if not name.startswith("attention"):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    sides = [round(len(row) ** 0.5) for row in rows]
    longest = max(sides)
    padded = rows[0].new_zeros(len(rows), rows[0].shape[-1], longest, longest)
    for i, (row, side) in enumerate(zip(rows, sides, strict=True)):
        padded[i, :, :side, :side] = row.T.reshape(-1, side, side)
    return padded
