"""A teacher from a local folder or the hub, run in float32, without dropout, without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from edgekd.errors import BadInput

Encoded = Mapping[str, Any]
Outputs = torch.Tensor | list[torch.Tensor]  # [N, C], or per row [W, C] over its units
TEXT_INPUTS = ("input_ids", "attention_mask")
DUAL = "zero-shot-image-classification"
LOGITS = 2**27  # float32 numbers of one batch


def model_class(auto_task: str) -> Any:
    """transformers' Auto class of a task, from optimum's task map; or the model as edgekd runs it (``dual.py``)."""
    if auto_task == DUAL:
        from edgekd.teach.dual import CLIPModel

        return CLIPModel
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(auto_task)


def load_teacher(teacher: Any, auto_task: str) -> torch.nn.Module:
    """The teacher in float32 and eval mode (a checkpoint in half precision is widened, not trusted).

    ``teacher`` has ``model`` and ``revision``; only the first teacher of a recipe may have ``trust_remote_code``.
    """
    from transformers import AutoConfig

    options = {"revision": teacher.revision, "trust_remote_code": getattr(teacher, "trust_remote_code", False)}
    try:
        config = AutoConfig.from_pretrained(teacher.model, **options)
        ours = any(name.startswith("edgekd_") for name in vars(config))  # transformers would fill in random weights
        model = (
            None
            if ours
            else model_class(auto_task).from_pretrained(
                teacher.model, dtype=torch.float32, use_safetensors=True, **options
            )
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise BadInput(
            f"the teacher's weights cannot be loaded ({first})",
            where=str(teacher.model),
            todo="Check that its config.json (id2label too) and its weights belong together.",
        ) from None
    if model is None:
        raise BadInput(
            "is a student with a factorised word table or narrowed heads, which cannot be a teacher yet",
            where=str(teacher.model),
            todo="Distil from the model that taught it.",
        )
    return model.eval().requires_grad_(False)


def device() -> torch.device:
    """Where models that are not trained run: the accelerator, if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def length(row: Encoded) -> int:
    """Tokens of an encoded row; 0 for an image."""
    return len(row["input_ids"]) if "input_ids" in row else 0


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of ``size``, sorted by length (then by index): a fixed composition, little padding.

    Images (of length 0) and texts are never in one batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    images = sum(length == 0 for length in lengths)
    for some in (order[:images], order[images:]):
        for start in range(0, len(some), size):
            yield some[start : start + size]


def pad(rows: Sequence[Encoded], pad_token_id: int, names: Sequence[str] = TEXT_INPUTS) -> dict[str, torch.Tensor]:
    """The model's inputs: ids right-padded to the longest row [B, S] int64, images stacked [B, 3, H, W] float32.

    Each is of the rows that have it, as long as the longest of these; an input that none has is left out.
    """
    batch: dict[str, torch.Tensor] = {}
    for name in names:
        some = [row for row in rows if name in row]
        if not some:
            continue
        if name == "pixel_values":
            batch[name] = torch.from_numpy(np.stack([np.asarray(row[name], np.float32) for row in some]))
            continue
        fill = pad_token_id if name.endswith("input_ids") else 0
        padded = np.full((len(some), max(len(row[name]) for row in some)), fill, np.int64)
        for i, row in enumerate(some):
            padded[i, : len(row[name])] = row[name]
        batch[name] = torch.from_numpy(padded)
    return batch


def inputs_of(
    model: torch.nn.Module, rows: Sequence[Encoded], pad_token_id: int, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Padded inputs of these rows, where the model is."""
    place = next(model.parameters()).device
    return {name: one.to(place) for name, one in pad(rows, pad_token_id, names).items()}


def predict(
    model: torch.nn.Module, task: Any, encoded: Sequence[Encoded], pad_token_id: int, *, size: int = 64
) -> Outputs:
    """The task's outputs in row order, float32, in eval mode, in length-sorted batches of fixed composition."""
    training = model.training
    model.eval()
    found: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
    with torch.inference_mode():
        for rows in length_batches([length(one) for one in encoded], size):
            inputs = inputs_of(model, [encoded[i] for i in rows], pad_token_id, task.INPUTS)
            logits = task.logits(model(**inputs), inputs).float().cpu()
            for i, row in enumerate(rows):
                found[row] = task.take(logits[i], encoded[row]).clone()
    model.train(training)
    return gather(task, [one.clone() for one in found])


def at_once(model: Any, max_length: int, wanted: int = 64) -> int:
    """Rows of a language model's batch whose logits take at most 512 MB."""
    return max(1, min(wanted, LOGITS // (max_length * model.config.vocab_size)))


def gather(task: Any, outputs: Sequence[torch.Tensor]) -> Outputs:
    """Row outputs as one tensor where all have one shape ([N, C]), as a list where they are per unit."""
    return list(outputs) if task.PER_UNIT else torch.stack(list(outputs))


def pick(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    """The outputs of some rows."""
    return outputs[list(rows)] if isinstance(outputs, torch.Tensor) else [outputs[row] for row in rows]


def paired(task: Any, left: Outputs, right: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Both outputs as distributions to compare, [M, K] each; units that one of them has lost are left out of both."""
    if task.PER_UNIT:
        kept = [min(len(a), len(b)) for a, b in zip(left, right, strict=True)]
        left = [a[:n] for a, n in zip(left, kept, strict=True)]
        right = [b[:n] for b, n in zip(right, kept, strict=True)]
    return task.stack(left), task.stack(right)


def arrays(outputs: Outputs) -> Any:
    """The same as numpy: what the tasks' metrics take."""
    return outputs.numpy() if isinstance(outputs, torch.Tensor) else [one.numpy() for one in outputs]
