"""Several teachers as one: the others refine or average what the first one says.

A member's labels are matched to the first teacher's by name and its text goes through its own tokenizer, so it may
be another kind of model. A member that knows only some of the labels says how the probability that the first
teacher gives to those labels is to be shared out among them, and nothing about the others. It refuses tasks without
labels, and members with a label that the first teacher does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgekd.errors import BadInput
from edgekd.recipe import Member
from edgekd.teach import transformers


@dataclass(frozen=True)
class Loaded:
    """A member in memory: its network, its processor, and the first teacher's class of each of its labels."""

    name: str
    weight: float
    digest: str
    model: torch.nn.Module
    processor: Any
    pad_token_id: int
    classes: list[int]
    max_length: int


def members(asked: Sequence[Member], task: Any, labels: Sequence[str], max_length: int) -> list[Loaded]:
    """Load the members; raises BadInput for one that does not fit the task or the labels."""
    from transformers import AutoTokenizer

    from edgekd.teach.stage import revision

    if asked and not labels:
        raise BadInput("this task has no labels to match further teachers by", where="teach.members")
    found = []
    for member in asked:
        model = transformers.load_teacher(member, task.AUTO_TASK)
        own = task.labels(model.config, None)
        unknown = sorted(set(own) - set(labels))
        if unknown:
            raise BadInput(
                f"its label '{unknown[0]}' is none of the first teacher's",
                where=member.model,
                todo="A member knows all or some of the first teacher's labels, by the same names.",
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(member.tokenizer or member.model, revision=member.revision)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise BadInput(f"its tokenizer cannot be loaded ({first})", where=member.model) from None
        found.append(
            Loaded(
                name=member.model,
                weight=member.weight,
                digest=revision(member, model),
                model=model,
                processor=tokenizer.backend_tokenizer,
                pad_token_id=tokenizer.pad_token_id or 0,
                classes=[list(labels).index(name) for name in own],
                max_length=max_length,
            )
        )
    return found


def combine(
    first: transformers.Outputs, others: Sequence[Loaded], rows: Sequence[Any], task: Any, how: str
) -> transformers.Outputs:
    """Log-probabilities of the mixture, in the shape of the first teacher's outputs (last dimension: its labels).

    ``weighted``: sum of w p / sum of w, the first teacher's weight is 1. ``confidence``: each weight times
    exp(-entropy of that teacher's distribution) per row (cf. Zhang et al. 2022, arXiv:2201.00007).
    """
    said = []
    for member in others:
        encoded = task.encode(member.processor, rows, member.max_length)
        said.append(transformers.predict(member.model, task, encoded, member.pad_token_id))
    mixed = []
    for i, mine in enumerate(first):
        theirs = [outputs[i][: len(mine)] if task.PER_UNIT else outputs[i] for outputs in said]
        mixed.append(mixture(mine, theirs, others, how))
    return transformers.gather(task, mixed)


def mixture(mine: torch.Tensor, theirs: Sequence[torch.Tensor], others: Sequence[Loaded], how: str) -> torch.Tensor:
    """The mixture for one row: ``mine`` [..., C] logits, each of ``theirs`` [..., its labels]; log-probabilities."""
    base = mine.double().softmax(-1)
    shares, weights = [base], [torch.ones(base.shape[:-1], dtype=torch.float64)]
    for logits, member in zip(theirs, others, strict=True):
        share = base.clone()
        share[..., member.classes] = logits.double().softmax(-1) * base[..., member.classes].sum(-1, keepdim=True)
        shares.append(share)
        weights.append(torch.full(base.shape[:-1], member.weight, dtype=torch.float64))
    if how == "confidence":
        weights = [w * (-torch.special.entr(p).sum(-1)).exp() for w, p in zip(weights, shares, strict=True)]
    total = torch.stack([w[..., None] * p for w, p in zip(weights, shares, strict=True)]).sum(0)
    return (total / torch.stack(weights).sum(0)[..., None]).clamp_min(1e-30).log().float()
