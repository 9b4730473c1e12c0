"""Sentence similarity: one text in, a vector out; two texts are as similar as the cosine of their vectors.

The vector is the mean of the last layer over the text's tokens, scaled to length 1 (Reimers & Gurevych 2019,
arXiv:1908.10084). A labelled pair becomes two consecutive rows, which batches keep together. Refuses scores that are
neither 0 to 1 nor 0 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.errors import BadInput
from edgekd.tasks import _classes, _text, _vectors
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "feature-extraction"
HEADLINE = "spearman"
COLUMNS = ("sentence1", "sentence2", "score")
OPTIONAL_COLUMNS: tuple[str, ...] = ()
TEXT_COLUMNS = ("text",)
LIST_COLUMNS: tuple[str, ...] = ()
FILE_COLUMNS: tuple[str, ...] = ()
INPUTS = _text.INPUTS
GROUP = 2
PER_UNIT = False
SOFT = "contrastive"
STS = 5.0  # the highest score of the STS scale

processor = _text.processor
stack = _classes.stack
take = _vectors.take
agree = _vectors.agree
answer = _vectors.answer


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"text", "other", "score"}`` of a pair, ``{"text"}`` of an unlabelled text.

    Scores are 0 to 1, or 0 to 5 as in STS: a table with any score above 1 is read as the latter. Raises BadInput
    for a score outside.
    """
    if "sentence1" not in row:
        return {"text": row["text"].strip()}
    try:
        score = float(row["score"])
    except ValueError:
        score = float("nan")
    if not 0 <= score <= STS:
        raise BadInput(f"the score '{row['score']}' is no number from 0 to 5", todo="Scores are 0 to 1, or 0 to 5.")
    return {"text": row["sentence1"].strip(), "other": row["sentence2"].strip(), "score": score}


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """Two rows per pair; unlabelled texts as they are, two of them a pair (an odd last one is dropped)."""
    if examples and "other" not in examples[0]:
        return list(examples[: len(examples) // 2 * 2])
    return [row for one in examples for row in (one, {**one, "text": one["other"], "other": one["text"]})]


def sample_text(example: Example) -> str:
    """The text."""
    return str(example["text"])


def group_text(example: Example) -> str:
    """Both texts of the pair, in an order that does not depend on which comes first."""
    return "\n".join(sorted((example["text"], example.get("other", ""))))


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """No labels; raises BadInput where the recipe names some."""
    if asked:
        raise BadInput("sentence-similarity has no labels", where="recipe", todo="Leave data.labels out.")
    return []


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Ids with special tokens, cut to ``max_length`` on the right, unpadded."""
    found = _text.encodings(processor, [example["text"] for example in examples], max_length)
    return [_text.inputs(one) for one in found]


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, H]: the mean of the last hidden state over the tokens of the mask, of length 1."""
    hidden_BSH = outputs.last_hidden_state
    mask_BS1 = inputs["attention_mask"].to(hidden_BSH.dtype).unsqueeze(-1)
    mean_BH = (hidden_BSH * mask_BS1).sum(1) / mask_BS1.sum(1).clamp(min=1.0)
    return mean_BH / (mean_BH * mean_BH).sum(-1, keepdim=True).clamp(min=1e-12).sqrt()


def targets(examples: Sequence[Example]) -> list[float | None]:
    """Scores from 0 to 1, the pair's in both of its rows."""
    scores = [example.get("score") for example in examples]
    scale = STS if any(score is not None and score > 1 for score in scores) else 1.0
    return [None if score is None else score / scale for score in scores]


def hard_loss(stacked_MH: Any, targets: Sequence[float | None]) -> Any:
    """Mean squared difference between the pairs' cosines and scores, over the labelled pairs."""
    import torch

    goals = targets[::2]
    kept = [pair for pair, goal in enumerate(goals) if goal is not None]
    if not kept:
        return stacked_MH.sum() * 0.0
    cosine_P = torch.nn.functional.cosine_similarity(stacked_MH[::2].float(), stacked_MH[1::2].float())
    return ((cosine_P[kept] - cosine_P.new_tensor([goals[pair] for pair in kept])) ** 2).mean()


def metrics(outputs: Any, examples: Sequence[Example], teacher: Any = None) -> dict[str, float]:
    """``spearman`` and ``pearson`` correlation of the pairs' cosines with their scores, 0 where one is constant.

    ``teacher_agreement`` is the Spearman correlation with the teacher's cosines: it needs no equal widths.
    """
    cosine_P, score_P = _cosines(outputs), np.array([example["score"] for example in examples[::2]])
    found = {"spearman": _pearson(ranks(cosine_P), ranks(score_P)), "pearson": _pearson(cosine_P, score_P)}
    if teacher is not None:
        found["teacher_agreement"] = _pearson(ranks(cosine_P), ranks(_cosines(teacher)))
    return found


def correct(outputs: Any, examples: Sequence[Example]) -> None:
    """None: a correlation is a number of all pairs together."""
    return None


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse_N, count_K = np.unique(values_N, return_inverse=True, return_counts=True)
    return (count_K.cumsum() - (count_K - 1) / 2)[inverse_N]


def _cosines(outputs: Any) -> np.ndarray:
    outputs_MH = np.asarray(outputs, np.float64)
    return _vectors.cosine(outputs_MH[::2], outputs_MH[1::2])


def _pearson(left_N: np.ndarray, right_N: np.ndarray) -> float:
    left_N, right_N = left_N - left_N.mean(), right_N - right_N.mean()
    size = float(np.sqrt((left_N**2).sum() * (right_N**2).sum()))
    return float((left_N * right_N).sum() / size) if size > 0 else 0.0
