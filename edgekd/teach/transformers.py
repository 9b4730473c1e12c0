"""A teacher from a local folder or the hub, run in float32, without dropout, without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import SafetensorError

from edgekd.errors import BadInput
from edgekd.recipe import Teacher


def model_class(auto_task: str) -> Any:
    """transformers' Auto class of a task, from optimum's task map."""
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(auto_task)


def load_teacher(teacher: Teacher, auto_task: str) -> torch.nn.Module:
    """The teacher in float32 and eval mode (a checkpoint in half precision is widened, not trusted)."""
    try:
        model = model_class(auto_task).from_pretrained(
            teacher.model,
            revision=teacher.revision,
            trust_remote_code=teacher.trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise BadInput(
            f"the teacher's weights cannot be loaded ({first})",
            where=str(teacher.model),
            todo="Check that its config.json (id2label too) and its weights belong together.",
        ) from None
    return model.eval().requires_grad_(False)


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of ``size``, sorted by length (then by index): a fixed composition, little padding."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad(rows: Sequence[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-pad encoded rows to their longest: ``input_ids`` and ``attention_mask`` [B, S] int64."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids_BS = torch.full((len(rows), longest), pad_token_id, dtype=torch.int64)
    mask_BS = torch.zeros((len(rows), longest), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids_BS[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask_BS[i, : len(row["input_ids"])] = 1
    return {"input_ids": ids_BS, "attention_mask": mask_BS}
