"""Calibration, and quantization-aware training with the teacher in the loss.

What was found to beat calibration alone, in every case tried (docs/log.md): half training text, half other
text where there is any; the float student's logits and every layer's hidden states as the goal, and a little of
the teacher's soft labels; no dropout; small steps; learned scales from a percentile start. Plain cross entropy or
KL on the training text made it worse: there is no gradient left in text that the teacher fits. So the
calibrated state is checkpoint 0, and the checkpoint with the lowest held-out distance (the task's own loss, a KL
for most) to the float student wins, if it is clearly lower than the calibrated one's: on a thousand rows a change of
agreement is two or three texts, while the distance moves with every row. How large a step may be depends on how near
the start already is, so training that leads away goes back to the best checkpoint, and on in smaller steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgekd.artifact import Progress
from edgekd.distill.sources import Source
from edgekd.errors import BadInput
from edgekd.losses import find
from edgekd.losses.features import hidden_mse
from edgekd.quantize import reference
from edgekd.recipe import Quantize
from edgekd.teach.transformers import TEXT_INPUTS, Encoded, device, gather, length, pad, paired

GAIN = 0.05  # share of a held-out distance below which a change may be the draw of rows
SLOWER = 0.2  # of the learning rates, once an evaluation finds that they led away
GELU_FLAT = -3.0  # below it a GELU gives -0.004 to 0: a range that goes on spends half of its steps on nothing
GELUS = ("GELU", "GELUActivation", "NewGELUActivation", "FastGELUActivation", "PytorchGELUTanh", "GELUTanh")
ZERO_POINT_RATE = 20.0  # the zero point moves in whole steps, the scale in shares of itself


@dataclass(frozen=True)
class Pool:
    """Rows to train on, and where the teacher's outputs for them come from (by row)."""

    encoded: Sequence[Encoded]
    source: Source


def same_length_batches(encoded: Sequence[Encoded], size: int) -> list[list[int]]:
    """Indices in batches of equal length: no padding at all, so no padded token is ever calibrated on or scored."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(encoded):
        groups.setdefault(length(row), []).append(i)
    return [rows[i : i + size] for _, rows in sorted(groups.items()) for i in range(0, len(rows), size)]


class Tails:
    """The smallest and the largest of all values seen: exact quantiles near both ends, in little memory.

    ``tokens`` is how many tokens will be seen in all; a share ``1 - percentile`` of their values is kept at each end.
    numpy, because it finds the few values beyond two bounds several times as fast.
    """

    def __init__(self, percentile: float, tokens: int) -> None:
        self.percentile, self.tokens, self.count, self.keep = percentile, tokens, 0, 0
        # The ``keep`` values at each end, and what came since they were cut out.
        self.kept: Any = np.empty(0, np.float32)
        self.low, self.high = math.inf, -math.inf  # values between them are at neither end
        self.last: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """Count the values of ``x`` [..., width]; the same at once again (query, key, value) count once."""
        if _again(self.last, x):
            return
        values = x.detach().float().reshape(-1).numpy()
        self.last, self.count = x, self.count + len(values)
        self.keep = math.ceil((1 - self.percentile) * self.tokens * x.shape[-1]) + 1
        beyond = values < np.float32(self.low)
        beyond |= values > np.float32(self.high)
        self.kept = np.concatenate([self.kept, values[np.flatnonzero(beyond)]])
        if len(self.kept) >= 4 * self.keep:
            self.kept.partition((self.keep - 1, len(self.kept) - self.keep))
            self.kept = np.concatenate([self.kept[: self.keep], self.kept[-self.keep :]])
            self.low, self.high = float(self.kept[self.keep - 1]), float(self.kept[self.keep])

    def range(self) -> tuple[float, float]:
        """The two values beyond which a share ``1 - percentile`` lies (nearest rank)."""
        rank = min(round((1 - self.percentile) * (self.count - 1)), self.keep - 1)
        ordered = np.sort(self.kept)
        return float(ordered[rank]), float(ordered[-1 - rank])


def _again(last: torch.Tensor | None, x: torch.Tensor) -> bool:
    """By value: layers that smooth what they read (``reference.smoothed``) each make a tensor of their own."""
    return last is not None and (x is last or torch.equal(x, last))


class Histogram:
    """Counts of all values between two bounds: enough to know what a narrower range would cost."""

    BINS = 2048

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = min(low, 0.0), max(high, 0.0)
        self.counts = torch.zeros(self.BINS, dtype=torch.float64)
        self.last: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """Count the values of ``x``; the same at once again count once."""
        if not _again(self.last, x) and self.low < self.high:
            self.last = x
            self.counts += torch.histc(x.detach().float(), self.BINS, self.low, self.high).double()

    def range(self) -> tuple[float, float]:
        """The range with the smallest squared error of rounding and clipping, each end cut by its own share."""
        width = (self.high - self.low) / self.BINS
        centres = self.low + (torch.arange(self.BINS, dtype=torch.float64) + 0.5) * width
        shares = torch.linspace(0.1, 1.0, 46, dtype=torch.float64).tolist()

        def error(low: float, high: float) -> float:
            scale = max((high - low) / (reference.QMAX - reference.QMIN), 1e-12)
            steps = ((centres.clamp(low, high) / scale).round() * scale - centres).square()
            return float((steps * self.counts).sum())

        high = min((self.high * share for share in shares), key=lambda high: error(self.low, high))
        low = min((self.low * share for share in shares), key=lambda low: error(low, high))
        return low, high


def calibrate(
    model: nn.Module,
    encoded: Sequence[Encoded],
    percentile: float,
    names: Sequence[str] = TEXT_INPUTS,
    *,
    least_squares: bool = False,
) -> None:
    """Set every activation range to the ``percentile`` (at either end) of what these rows give; 1.0 is min-max.

    What a GELU reads is cut where that is flat. With ``least_squares`` a second pass narrows the range of all values
    to the one that loses least. Every value of every token counts once, padding never. A layer that does not run keeps
    the range it has, and a scheme without static activations has nothing to set.
    """
    model.eval()
    if not any(True for _ in reference.quantizers(model)):
        return
    batches = same_length_batches(encoded, 16)
    shortest = pad([encoded[batches[0][0]]], 0, names)
    with _observed(model, {}):  # by the float model: nothing is rounded to find out who reads what
        reference.share_inputs(model, shortest)
    tokens = sum(length(row) for row in encoded) or len(encoded) * _tokens(model, pad([encoded[0]], 0, names))
    share = 1.0 if least_squares else percentile
    tails = {quantizer: Tails(share, tokens) for quantizer in reference.quantizers(model)}
    _observe(model, [[encoded[i] for i in rows] for rows in batches], tails, names)
    seen: dict[reference.ActivationQuantizer, Any] = {quantizer: one for quantizer, one in tails.items() if one.count}
    if least_squares:
        seen = {quantizer: Histogram(*one.range()) for quantizer, one in seen.items()}
        _observe(model, [[encoded[i] for i in rows] for rows in batches], seen, names)
    with _observed(model, {}):
        flat = _before_gelu(model, shortest)
    for quantizer, observer in seen.items():
        low, high = observer.range()
        quantizer.set_range(max(low, GELU_FLAT) if quantizer in flat else low, high)


def _before_gelu(model: nn.Module, inputs: dict[str, torch.Tensor]) -> set[reference.ActivationQuantizer]:
    """The quantizers whose output is the very tensor that a GELU reads."""
    made: list[tuple[torch.Tensor, reference.ActivationQuantizer]] = []
    found = set()

    def note(quantizer: Any, _: Any, output: torch.Tensor) -> None:
        made[:] = [(output, quantizer)]

    def read(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        found.update(quantizer for output, quantizer in made if output is arguments[0])

    outputs = (layer.output_quantizer for _, layer in reference.layers(model) if layer.kind.output)
    hooks = [one.register_forward_hook(note) for one in outputs]
    hooks += [m.register_forward_pre_hook(read) for m in model.modules() if type(m).__name__ in GELUS]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def _observe(
    model: nn.Module,
    batches: Sequence[Sequence[Encoded]],
    observers: Mapping[reference.ActivationQuantizer, reference.Observer],
    names: Sequence[str],
) -> None:
    """One pass of the float model, its tensors shown to the observers."""
    with _observed(model, observers), torch.inference_mode():
        for rows in batches:
            model(**pad(rows, 0, names))


@contextmanager
def _observed(
    model: nn.Module, observers: Mapping[reference.ActivationQuantizer, reference.Observer]
) -> Iterator[None]:
    """In it, static layers are the float layers that they were, and these quantizers show what reaches them."""
    for quantizer in reference.quantizers(model):
        quantizer.observer = observers.get(quantizer, _Blind())
    yield
    for quantizer in reference.quantizers(model):
        quantizer.observer = None


class _Blind:
    def add(self, x: torch.Tensor) -> None:
        """A quantizer that nobody asks about passes its input through all the same."""


def _tokens(model: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """The most vectors that one layer reads for one row: what an image has for tokens."""
    seen: list[int] = []

    def note(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0].numel() // arguments[0].shape[-1])

    hooks = [layer.register_forward_pre_hook(note) for _, layer in reference.layers(model)]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return max(seen)


def train(
    model: nn.Module,
    student: nn.Module,
    pools: Sequence[Pool],
    settings: Quantize,
    task: Any,
    *,
    steps: int,
    knowledge: bool = True,
    temperature: float,
    pad_token_id: int,
    seed: int,
    scratch: Path,
    judge: Callable[[nn.Module], dict[str, float]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train ``model`` (prepared and calibrated) for ``steps`` in place to its best checkpoint; returns the trace.

    Without ``knowledge`` the loss is the distance of the logits to the float student's alone.

    ``student`` is the float model it came from; both are trained on the accelerator, if there is one, and come back to
    the CPU. Each batch follows from (seed, step), so a run that is killed and resumed from ``scratch`` ends with the
    same bytes. Where an evaluation is clearly worse than an earlier one, training goes on from the best checkpoint with
    learning rates times SLOWER. The trace has one entry per evaluation, step 0 first; ``pace``: the share of the rates.
    """
    place = _place()
    model.to(place)
    student.to(place)
    scales = [q.log_scale for q in reference.quantizers(model)]
    zeros = [q.zero_point for q in reference.quantizers(model)]
    special = {id(parameter) for parameter in (*scales, *zeros)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in special], "peak": settings.learning_rate},
        {"params": scales, "peak": settings.scale_learning_rate},
        {"params": zeros, "peak": settings.scale_learning_rate * ZERO_POINT_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0.0)
    model.eval()  # no dropout, wherever a model keeps it
    saved = scratch / "qat.pt"
    if saved.is_file():
        state = torch.load(saved, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        best, trace, start, pace = state["best"], state["trace"], state["step"], state["pace"]
    else:
        best, trace, start, pace = copy.deepcopy(model.state_dict()), [{"step": 0, **judge(model)}], 0, 1.0
    for step in range(start, steps):
        rate = min(1.0, (step + 1) / 20) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate * pace
        rows, inputs, teacher = _batch(pools, task, settings.batch_size, seed, step, pad_token_id, place)
        loss = distance_to(model, student, task, rows, inputs, teacher, settings, temperature, knowledge)
        if not torch.isfinite(loss):
            raise BadInput(
                f"the loss of quantization-aware training is {loss.item()} at step {step + 1}",
                where="quantize",
                todo="Lower quantize.learning_rate or quantize.scale_learning_rate.",
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, steps, "steps")
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == steps:
            trace.append({"step": step + 1, "loss": loss.item(), "pace": pace, **judge(model)})
            if chosen(trace) == step + 1:
                best = copy.deepcopy(model.state_dict())
            elif trace[-1]["distance"] > (1 + GAIN) * min(entry["distance"] for entry in trace):
                model.load_state_dict(best)
                optimizer.state.clear()
                pace *= SLOWER
            temporary = saved.with_suffix(".tmp")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "trace": trace,
                    "step": step + 1,
                    "pace": pace,
                },
                temporary,
            )
            temporary.replace(saved)
    model.load_state_dict(best)
    model.cpu()
    student.cpu()
    return trace


def _place() -> torch.device:
    """The accelerator, if there is one with float64, in which the numbers of a layer are chosen (Apple's has none)."""
    found = device()
    return torch.device("cpu") if found.type == "mps" else found


def chosen(trace: Sequence[dict[str, Any]]) -> int:
    """The step whose checkpoint won: lowest held-out distance to the float student, the earlier on a tie.

    Training must show itself: a win over the calibrated start by less than GAIN is what another draw of held-out rows
    would take back, and a checkpoint that gives fewer of the float student's answers than the start is no win at all.
    """
    start = trace[0]
    kept = [entry for entry in trace if entry.get("agreement", 0.0) >= start.get("agreement", 0.0)]
    best = min(kept, key=lambda entry: (entry["distance"], entry["step"]))
    return int(best["step"]) if best["distance"] < (1 - GAIN) * start["distance"] else 0


def _batch(
    pools: Sequence[Pool], task: Any, size: int, seed: int, step: int, pad_token_id: int, place: torch.device
) -> tuple[list[Encoded], dict[str, torch.Tensor], Any]:
    """Encoded rows, the model's inputs, and the teacher's outputs; rows that belong together (a pair) stay so."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows: list[Encoded] = []
    outputs: list[torch.Tensor] = []
    group = task.GROUP
    for i, pool in enumerate(pools):
        share = (max(1, size // group) + i) // len(pools)  # the shares add up to size
        if not share:
            continue
        groups = torch.randint(0, len(pool.encoded) // group, (share,), generator=generator).tolist()
        picked = [one * group + k for one in groups for k in range(group)]
        rows += [pool.encoded[i] for i in picked]
        outputs += [one.to(place) for one in pool.source(picked)["logits"]]
    inputs = {name: one.to(place) for name, one in pad(rows, pad_token_id, task.INPUTS).items()}
    return rows, inputs, gather(task, outputs)


def distance_to(
    model: nn.Module,
    student: nn.Module,
    task: Any,
    rows: Sequence[Encoded],
    inputs: dict[str, torch.Tensor],
    teacher: Any,
    settings: Quantize,
    temperature: float,
    knowledge: bool = True,
) -> torch.Tensor:
    """The loss of ``train``: squared error of the logits to the float student's and, with ``knowledge``, of the hidden
    states, and the task's own loss to ``teacher`` (its outputs for these rows)."""

    def outputs(found: Any) -> Any:
        logits = task.logits(found, inputs)
        return gather(task, [task.take(one, row) for one, row in zip(logits, rows, strict=True)])

    hidden = knowledge and settings.hidden_weight > 0
    with torch.no_grad():
        goal = student(**inputs, output_hidden_states=hidden)
    found = model(**inputs, output_hidden_states=hidden)
    mine = outputs(found)
    loss = F.mse_loss(*paired(task, mine, outputs(goal)))
    if hidden:
        states = list(zip(found.hidden_states[1:], goal.hidden_states[1:], strict=True))
        mask = inputs.get("attention_mask", loss.new_ones(states[0][0].shape[:2]))
        terms = [hidden_mse(ours, theirs, mask) for ours, theirs in states]
        loss = loss + settings.hidden_weight * torch.stack(terms).mean()
    if knowledge and settings.teacher_weight > 0:
        soft, pair = find(task.SOFT), paired(task, mine, teacher)
        term = soft.function(*pair, temperature) if soft.compares == "outputs" else soft.function(*pair)
        loss = loss + settings.teacher_weight * term
    return loss
