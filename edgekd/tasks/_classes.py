"""What tasks with label names share: the names themselves, and all that one class per row means.

Refuses label names that contradict the teacher's, because every number after that would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekd.errors import BadInput, closest
from edgekd.tasks._contract import Example

ECE_BINS = 15
UNLABELLED = -100


def names(config: Any, asked: Sequence[str] | None, kind: str, called: str) -> list[str]:
    """The teacher's label names in its order; ``asked`` names those of a teacher that has only LABEL_0, LABEL_1, ...

    ``kind`` is a part of the model class's name (``SequenceClassification``), ``called`` what a user calls it
    ("a sequence classifier"). Raises BadInput.
    """
    check_kind(config, kind, called)
    found = [str(config.id2label[i]) for i in sorted(config.id2label, key=int)]
    if len(found) < 2:
        raise BadInput(f"has {len(found)} label", todo="A classifier needs at least two.")
    if all(name == f"LABEL_{i}" for i, name in enumerate(found)):
        if asked is None:
            return found
        if len(asked) != len(found):
            raise BadInput(f"data.labels names {len(asked)}, the teacher has {len(found)}", where="recipe")
        if len(set(asked)) != len(asked):
            raise BadInput("data.labels names one label twice", where="recipe")
        return list(asked)
    if asked is not None and list(asked) != found:
        if sorted(asked) == sorted(found):
            first = next(i for i, (a, b) in enumerate(zip(asked, found, strict=True)) if a != b)
            raise BadInput(
                f"data.labels has another order than the teacher's (label {first} is '{found[first]}' there)",
                where="recipe",
                todo="Use the teacher's order, or leave data.labels out.",
            )
        lost = sorted(set(asked) ^ set(found))[0]
        raise BadInput(f"data.labels and the teacher's labels differ (e.g. '{lost}')", where="recipe")
    return found


def check_kind(config: Any, kind: str, called: str) -> None:
    """Raise BadInput where the checkpoint says that it is a model of another kind."""
    architectures = config.architectures or []
    if architectures and not any(kind in name for name in architectures):
        raise BadInput(f"is a {architectures[0]}, not {called}", todo="Fine-tune it on the task first.")


def class_id(label: Any, labels: Sequence[str]) -> int:
    """The id of a label given by name or, where it is no name, as a number; raises BadInput for anything else."""
    name = str(label).strip()
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    raise BadInput(
        f"unknown label '{name}'",
        todo=f"The teacher knows {len(labels)} labels.{closest(name, list(labels))}",
    )


def stack(outputs: Any) -> Any:
    """[N, C] from a list of torch vectors, or from what is one tensor already."""
    import torch

    return outputs if isinstance(outputs, torch.Tensor) else torch.stack(list(outputs))


def cross_entropy(logits_MK: Any, targets: Sequence[int | None]) -> Any:
    """Mean cross entropy over the labelled rows, 0 where there is none."""
    import torch
    import torch.nn.functional as F

    ids_M = torch.tensor([UNLABELLED if one is None else one for one in targets], device=logits_MK.device)
    if not (ids_M != UNLABELLED).any():
        return logits_MK.sum() * 0.0
    return F.cross_entropy(logits_MK.float(), ids_M, ignore_index=UNLABELLED)


def targets(examples: Sequence[Example]) -> list[int | None]:
    """Class ids."""
    return [example.get("label") for example in examples]


def metrics(outputs: Any, examples: Sequence[Example], teacher: Any = None) -> dict[str, float]:
    """``accuracy``, ``macro_f1``, ``ece`` and, with the teacher's outputs, ``teacher_agreement``.

    Macro F1 is over the classes that occur among labels or predictions, as scikit-learn does it. ECE is the
    expected calibration error with 15 equal-width bins (Guo et al. 2017, arXiv:1706.04599).
    """
    logits_NC = np.asarray(outputs, dtype=np.float64)
    labels_N = np.array([example["label"] for example in examples])
    predicted_N = logits_NC.argmax(-1)
    found = {
        "accuracy": float((predicted_N == labels_N).mean()),
        "macro_f1": _macro_f1(predicted_N, labels_N),
        "ece": _ece(logits_NC, labels_N),
    }
    if teacher is not None:
        found["teacher_agreement"] = float(agree(outputs, teacher).mean())
    return found


def agree(outputs: Any, others: Any) -> np.ndarray:
    """1.0 where both name the same class, else 0.0; float64 [N]."""
    return (np.asarray(outputs).argmax(-1) == np.asarray(others).argmax(-1)).astype(np.float64)


def correct(outputs: Any, examples: Sequence[Example]) -> np.ndarray:
    """Whether the largest logit is the label's, bool [N]."""
    return np.asarray(outputs).argmax(-1) == np.array([example["label"] for example in examples])


def answer(output: Any, example: Example, labels: Sequence[str], top_k: int = 3) -> list[dict[str, Any]]:
    """``[{"label", "score"}, ...]``: the ``top_k`` labels by probability, best first."""
    shares_C = softmax(np.asarray(output, dtype=np.float64))
    return [{"label": labels[i], "score": float(shares_C[i])} for i in np.argsort(-shares_C, kind="stable")[:top_k]]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _macro_f1(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    scores = []
    for label in np.union1d(predicted_N, labels_N):
        hits = int(((predicted_N == label) & (labels_N == label)).sum())
        total = int((predicted_N == label).sum() + (labels_N == label).sum())
        scores.append(2 * hits / total)
    return float(np.mean(scores))


def _ece(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    shares_NC = softmax(logits_NC)
    confidence_N, right_N = shares_NC.max(-1), shares_NC.argmax(-1) == labels_N
    bin_N = np.minimum((confidence_N * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [
        abs(confidence_N[bin_N == b].mean() - right_N[bin_N == b].mean()) * (bin_N == b).mean()
        for b in range(ECE_BINS)
        if (bin_N == b).any()
    ]
    return float(sum(gaps))
