"""Quantization-aware training of students that write text: distil's trainer, with the float student as the teacher.

The loss is the KL of the float student's distributions at every learned token; with knowledge, also its hidden states
and a little of the KL to the teacher's distributions, cached or online. The calibrated state is checkpoint 0, and the
checkpoint with the lowest KL on held-out tokens wins, if it is clearly lower (see ``qat.chosen``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgekd.artifact import Progress
from edgekd.distill import tokens, trainer
from edgekd.losses import _tokens
from edgekd.quantize import qat
from edgekd.quantize.reference import QATLinear
from edgekd.recipe import Distill, Quantize
from edgekd.teach import transformers

WARM_UP = 20  # steps
Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Goal:
    """What the learned tokens of a batch are compared with; their places are ``at_2N``.

    ``states`` are the float student's hidden states [N, D] by layer (none: they do not count), ``teacher`` the
    teacher's distributions.
    """

    at_2N: torch.Tensor
    student: _tokens.Dense
    states: Sequence[torch.Tensor]
    teacher: _tokens.Dense | _tokens.Sparse | None
    how: _tokens.Settings


class Trainee(tokens.TokenLearner):
    """A prepared language model with its goals, and the loss."""

    def train(self, mode: bool = True) -> Trainee:
        """It stays in eval mode: no dropout, wherever a model keeps it."""
        return super().train(False)

    def forward(self, *, goal: Goal | None = None, **inputs: Any) -> Any:
        if goal is None:
            return super().forward(**inputs)
        mine = states(self.student, inputs, goal.at_2N, every=bool(goal.states))
        head, hidden_ND = tokens.head(self.student), mine[-1]
        if isinstance(last := self.student.get_output_embeddings(), QATLinear):
            hidden_ND, weight_VD = last.operands(hidden_ND)
            head = replace(head, weight=weight_VD)
        found: Values = {"student": _tokens.loss(hidden_ND, head, goal.student, None, goal.how)[0]}
        if goal.states:
            found["hidden"] = torch.stack(list(map(F.mse_loss, mine, goal.states))).mean()
        if goal.teacher is not None:
            found["teacher"] = _tokens.loss(hidden_ND, head, goal.teacher, None, goal.how)[0]
        return found


def states(model: Any, inputs: dict[str, Any], at_2N: torch.Tensor, *, every: bool) -> list[torch.Tensor]:
    """Hidden states [N, D] at some places: of every layer, the last one's behind the last norm, or of that alone.

    Those of a decoder, where there is an encoder too: an encoder's own gain nothing beside them (docs/log.md).
    """
    if every:
        found = tokens.body(model, inputs, output_hidden_states=True).hidden_states[1:]
    else:
        found = [tokens.hidden(model, inputs)]
    return [one[at_2N[0], at_2N[1]] for one in found]


def values(
    student: nn.Module,
    weights: dict[str, float],
    bare: trainer.Learner,
    rows: tokens.TokenRows,
    lessons: Sequence[trainer.Lesson],
    inputs: dict[str, torch.Tensor],
    numbers: Sequence[int],
    alpha: float,
    temperature: float,
) -> tuple[Values, dict[str, tuple[float, torch.Tensor]]]:
    """As ``trainer.values``, of a Trainee: the KL to the float ``student``, and what else has a weight."""
    at_2N, right_N = inputs.pop("at"), inputs.pop("right")
    with torch.no_grad():
        theirs = states(student, inputs, at_2N, every=bool(weights["hidden"]))
    goal = Goal(
        at_2N,
        _tokens.Dense(theirs[-1], tokens.head(student)),
        theirs if weights["hidden"] else (),
        rows.goal(rows.told(numbers), numbers, right_N.device),
        _tokens.Settings(temperature=temperature, vocabulary=rows.words),
    )
    found = bare.forward(goal=goal, **inputs)
    return found, {name: (weights[name], value) for name, value in found.items()}


def train(
    model: nn.Module,
    student: nn.Module,
    rows: tokens.TokenRows,
    settings: Quantize,
    *,
    temperature: float,
    seed: int,
    scratch: Path,
    judge: Callable[[nn.Module], dict[str, float]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train ``model`` (prepared, its weights chosen) in place to its best checkpoint; returns the trace.

    ``student`` is the float model it came from; both are on one device. The rows have a source where the teacher
    counts, and ``quantize.method: qat`` leaves hidden states out. It resumes as ``trainer.train`` does; the trace has
    one entry per evaluation, step 0 first.
    """
    trace: list[dict[str, Any]] = [{"step": 0, **judge(model)}]
    start, steps = copy.deepcopy(model.state_dict()), settings.steps
    hidden = 0.0 if settings.method == "qat" else settings.hidden_weight
    weights = {"student": 1.0, "hidden": hidden, "teacher": settings.teacher_weight}
    history = trainer.train(
        model,
        rows,
        Distill(
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=0.0,
            warmup=min(WARM_UP, steps // 2) / steps,
            temperature=temperature,
            patience=steps + 1,  # never
            checkpoint_every=settings.evaluate_every,
        ),
        [],
        max_steps=steps,
        evaluate_every=min(settings.evaluate_every, steps),
        seed=seed,
        scratch=scratch,
        judge=judge,
        better=lambda entry: (entry["eval_agreement"] >= trace[0]["agreement"], -entry["eval_distance"]),  # qat.chosen
        progress=progress,
        measure=partial(values, student, weights),
        kind=Trainee,
        section="quantize",
    )
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    for entry in trainer.evaluations(history):
        told = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
        loss = {"loss": losses[entry["step"]]} if entry["step"] in losses else {}
        trace.append({"step": entry["step"], **loss, **told})
    if not qat.chosen(trace):
        model.load_state_dict(start)
    return trace


@torch.inference_mode()
def compared(
    model: nn.Module, student: nn.Module, task: Any, encoded: Sequence[Any], vocabulary: int, size: int
) -> dict[str, float]:
    """How far ``model`` is from the float ``student`` on the learned tokens of these rows, ``size`` at once.

    ``distance``: the mean KL, nats; ``mean_abs_delta``: of the right token's log-probability; ``agreement``: the share
    of tokens on which both find the same one likeliest; ``perplexity``, and ``perplexity_rise`` above the student's, a
    share.
    """
    sums, count = torch.zeros(5, dtype=torch.float64), 0
    for batch in transformers.length_batches([transformers.length(one) for one in encoded], size):
        some = [encoded[i] for i in batch]
        mine, theirs = (_log_probabilities(one, task, some, vocabulary) for one in (model, student))
        right = [token for row in some for token in task.right(row)]
        at_N1 = torch.tensor(right, dtype=torch.int64, device=mine.device)[:, None]
        of_mine, of_theirs = mine.gather(1, at_N1), theirs.gather(1, at_N1)
        sums += torch.stack(
            [
                F.kl_div(mine, theirs, reduction="sum", log_target=True),
                (of_mine - of_theirs).abs().sum(),
                (mine.argmax(-1) == theirs.argmax(-1)).sum(),
                of_mine.sum(),
                of_theirs.sum(),
            ]
        ).cpu()
        count += len(right)
    distance, delta, agreement, likely, wanted = (sums / count).tolist()
    return {
        "distance": distance,
        "mean_abs_delta": delta,
        "agreement": agreement,
        "perplexity": math.exp(-likely),
        "perplexity_rise": math.exp(wanted - likely) - 1,
    }


def _log_probabilities(model: nn.Module, task: Any, rows: Sequence[Any], vocabulary: int) -> torch.Tensor:
    """[N, vocabulary] float32 at the learned tokens of these rows."""
    inputs = transformers.inputs_of(model, rows, 0, task.INPUTS)
    logits = task.logits(model(**inputs), inputs)
    found = [one[task.places(row), :vocabulary] for one, row in zip(logits, rows, strict=True)]
    return torch.cat(found).float().log_softmax(-1)
