"""Text classification: one text in, one of C labels out.

The contract is in ``_contract.py``. Metrics are plain numpy so that they can run beside any runtime; each is
checked against scikit-learn in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.errors import BadInput, closest
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "text-classification"
HEADLINE = "accuracy"
COLUMNS = ("text", "label")
TEXT_COLUMNS = ("text",)
ECE_BINS = 15


def example(row: Mapping[str, str], labels: Sequence[str]) -> Example:
    """``{"text", "label"}`` with the label as class id.

    A label is one of the names or, where it is no name, a class id written as a number. Raises BadInput for
    anything else; a row without a label column gives an unlabelled example (no ``label`` key).
    """
    text = row["text"].strip()
    if "label" not in row:
        return {"text": text}
    label = row["label"].strip()
    if label in labels:
        return {"text": text, "label": labels.index(label)}
    if label.isdecimal() and int(label) < len(labels):
        return {"text": text, "label": int(label)}
    raise BadInput(
        f"unknown label '{label}'",
        todo=f"The teacher knows {len(labels)} labels.{closest(label, list(labels))}",
    )


def sample_text(example: Example) -> str:
    """What names the sample in the teacher's cache."""
    return str(example["text"])


def encode(tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Ids with special tokens, cut to ``max_length`` on the right, unpadded (as transformers' tokenizers do it)."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    encoded = tokenizer.encode_batch([example["text"] for example in examples])
    return [{"input_ids": one.ids, "attention_mask": [1] * len(one.ids)} for one in encoded]


def hard_loss(logits_BC: Any, batch: Mapping[str, Any]) -> Any:
    """Sum of the cross entropies of the labelled rows (label >= 0); the caller divides by the size of the batch."""
    import torch.nn.functional as F

    return F.cross_entropy(logits_BC.float(), batch["label"], ignore_index=-100, reduction="sum")


def metrics(logits_NC: Any, examples: Sequence[Example], teacher_NC: Any = None) -> dict[str, float]:
    """``accuracy``, ``macro_f1``, ``ece`` and, with the teacher's logits, ``teacher_agreement``.

    Macro F1 is over the classes that occur among labels or predictions, as scikit-learn does it. ECE is the
    expected calibration error with 15 equal-width bins (Guo et al. 2017, arXiv:1706.04599).
    """
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    labels_N = np.array([example["label"] for example in examples])
    predicted_N = logits_NC.argmax(-1)
    found = {
        "accuracy": float((predicted_N == labels_N).mean()),
        "macro_f1": _macro_f1(predicted_N, labels_N),
        "ece": _ece(logits_NC, labels_N),
    }
    if teacher_NC is not None:
        found["teacher_agreement"] = float((predicted_N == np.asarray(teacher_NC).argmax(-1)).mean())
    return found


def correct(logits_NC: Any, examples: Sequence[Example]) -> Any:
    """Whether the largest logit is the label's, bool [N]."""
    return np.asarray(logits_NC).argmax(-1) == np.array([example["label"] for example in examples])


def answer(logits_C: Any, labels: Sequence[str], top_k: int = 3) -> list[dict[str, Any]]:
    """``[{"label", "score"}, ...]``: the ``top_k`` labels by probability, best first."""
    shares_C = _softmax(np.asarray(logits_C, dtype=np.float64))
    return [{"label": labels[i], "score": float(shares_C[i])} for i in np.argsort(-shares_C, kind="stable")[:top_k]]


def _softmax(logits: np.ndarray) -> np.ndarray:
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
    shares_NC = _softmax(logits_NC)
    confidence_N, right_N = shares_NC.max(-1), shares_NC.argmax(-1) == labels_N
    bin_N = np.minimum((confidence_N * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [
        abs(confidence_N[bin_N == b].mean() - right_N[bin_N == b].mean()) * (bin_N == b).mean()
        for b in range(ECE_BINS)
        if (bin_N == b).any()
    ]
    return float(sum(gaps))
