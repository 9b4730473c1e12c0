"""The distillation loss of a language model: from the last hidden states to a scalar, a few tokens at a time.

A language model's logits are [N tokens, V tokens of the vocabulary]: for 4,000 tokens and 150,000 words 2.4 GB, and a
loss by autograd holds several such matrices. Here a chunk of tokens is projected, its loss and the gradient of its
logits are computed in closed form and in place, and what is kept are the gradients of the hidden states and the head:
at most two [chunk, V] matrices live at any time, and nothing is projected twice.

Everything is computed in float32, whatever the dtype of the inputs: bf16 logits are off by up to 23 % in the gradient.
The mean is over the rows that are given: leave padding and prompts out before the call, and scale by the number of
tokens of the whole batch where gradients are accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CHUNK = 2**22  # logits (float32) in a chunk: 16 MB
LOWEST = torch.finfo(torch.float32).min
IGNORED = -100  # a label that does not count
SKEW = 0.1  # the share of the other distribution in skew KL (Ko et al. 2024, arXiv:2402.03898)


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states: ``cap(scale * (hidden @ weight.T + bias))``.

    ``weight`` [V, D]; ``bias`` [V] or None; ``scale`` multiplies the logits; ``cap`` c bounds them to (-c, c) by
    c tanh(x / c), 0 for none (Gemma 2, arXiv:2408.00118, section 2).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    cap: float = 0.0

    def logits(self, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
        """[N, V] float32; the float32 copies of the head's tensors are made once, by the caller."""
        hidden = hidden_ND.float()
        found = hidden @ weight_VD.T if bias_V is None else torch.addmm(bias_V, hidden, weight_VD.T)
        if self.scale != 1.0:
            found.mul_(self.scale)
        return found.div_(self.cap).tanh_().mul_(self.cap) if self.cap else found


@dataclass(frozen=True)
class Dense:
    """A teacher at hand: hidden states [N, E] of the same tokens, and its head [U, E].

    ``counts`` [N]: the tokens that are compared with it; None for all.
    """

    hidden: torch.Tensor
    head: Head
    counts: torch.Tensor | None = None


@dataclass(frozen=True)
class Sparse:
    """A teacher's distributions from a cache: K tokens a row, ``ids`` [N, K] (each once) and ``log_probs`` [N, K].

    With ``tail`` what is missing to 1 is one more bucket, "any other token": the top K tokens. Without, nothing is
    missing: tokens that were sampled (Anshumann et al. 2025, arXiv:2503.16870). An id with a log-probability of minus
    infinity fills a row up. ``counts`` as of ``Dense``; ``dropped`` [N]: probability of the teacher that is in none of
    it, told and not compared.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    tail: bool = True
    counts: torch.Tensor | None = None
    dropped: torch.Tensor | None = None


@dataclass(frozen=True)
class Settings:
    """``soft * T^2 * divergence + hard * cross entropy``; alpha and beta of the field are both shares of 1."""

    divergence: str = "forward-kl"
    soft: float = 1.0
    hard: float = 0.0
    temperature: float = 1.0
    vocabulary: int | None = None  # tokens that the tokenizer has: rows of a head beyond them are padding
    chunk: int = CHUNK


def loss(
    hidden_ND: torch.Tensor, head: Head, teacher: Dense | Sparse | None, labels_N: torch.Tensor | None, how: Settings
) -> tuple[torch.Tensor, dict[str, float]]:
    """The mean loss over N tokens, with gradients to ``hidden_ND`` and the head, and its parts.

    Parts: ``soft`` (nats, with T^2), ``hard`` (nats; its mean is over labels other than -100) and ``dropped``, the
    teacher's mean probability on padding rows and other tokens that the student lacks, which is taken away before the
    comparison. ``labels_N`` are the next tokens. Raises ValueError for no tokens, a divergence without a sparse form
    and heads smaller than the vocabulary.
    """
    size = how.vocabulary or len(head.weight)
    if not len(hidden_ND):
        raise ValueError("there are no tokens to compare")
    if size > len(head.weight) or (isinstance(teacher, Dense) and size > len(teacher.head.weight)):
        raise ValueError(f"a head has fewer rows than the vocabulary of {size} tokens")
    if how.soft and isinstance(teacher, Sparse) and how.divergence != "forward-kl":
        # The student would empty the tokens that it is compared on.
        raise ValueError(f"'{how.divergence}' needs the teacher's whole distribution; cached ones take forward-kl")
    if how.divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence '{how.divergence}': {', '.join(DIVERGENCES)}")
    wanted = torch.is_grad_enabled()
    value, parts = _Chunked.apply(hidden_ND, head.weight, head.bias, head, teacher, labels_N, how, size, wanted)
    return value, dict(zip(("soft", "hard", "dropped"), parts.tolist(), strict=True))


class _Chunked(torch.autograd.Function):
    """Loss and gradients in one pass; ``backward`` only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        head: Head,
        teacher: Dense | Sparse | None,
        labels_N: torch.Tensor | None,
        how: Settings,
        size: int,
        wanted: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count, rows = len(hidden_ND), max(1, how.chunk // len(weight_VD))
        weight = weight_VD[:size].float()
        bias = None if bias_V is None else bias_V[:size].float()
        taught = _Teacher(teacher, size, how.temperature)
        labelled = 0 if labels_N is None else int((labels_N != IGNORED).sum())
        needs = [wanted and need for need in ctx.needs_input_grad[:3]]
        hidden_g = torch.zeros_like(hidden_ND, dtype=torch.float32) if needs[0] else None
        weight_g = torch.zeros_like(weight_VD, dtype=torch.float32) if needs[1] else None
        bias_g = weight_VD.new_zeros(len(weight_VD), dtype=torch.float32) if needs[2] else None
        parts = torch.zeros(3, dtype=torch.float64)
        for start in range(0, count, rows):
            some = slice(start, start + rows)
            hidden = hidden_ND[some].detach().float()
            logits = head.logits(hidden, weight, bias)
            slope = None if not head.cap or not any(needs) else 1 - (logits / head.cap).square()
            labels = None if labels_N is None or not how.hard else labels_N[some]
            gradient, found = _chunk(logits, taught, some, labels, how, count, max(1, labelled), any(needs))
            parts += found
            if gradient is None:
                continue
            if slope is not None:
                gradient.mul_(slope)
            if head.scale != 1.0:
                gradient.mul_(head.scale)
            if hidden_g is not None:
                torch.mm(gradient, weight, out=hidden_g[some])
            if weight_g is not None:
                weight_g[:size].addmm_(gradient.T, hidden)
            if bias_g is not None:
                bias_g[:size] += gradient.sum(0)
        ctx.gradients, ctx.dtypes = (hidden_g, weight_g, bias_g), (hidden_ND.dtype, weight_VD.dtype)
        ctx.mark_non_differentiable(parts)
        return (parts[0] + parts[1]).float().to(hidden_ND.device), parts / parts.new_tensor(
            [how.soft or 1, how.hard or 1, 1]
        )

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        if _kept():  # backward will be asked again
            hidden, weight, bias = (None if one is None else one * scale for one in ctx.gradients)
        else:
            hidden, weight, bias = (None if one is None else one.mul_(scale) for one in ctx.gradients)
            ctx.gradients = None
        of_hidden, of_head = ctx.dtypes
        cast = [None if one is None else one.to(of_head) for one in (weight, bias)]
        return None if hidden is None else hidden.to(of_hidden), *cast, None, None, None, None, None, None


def _kept() -> bool:
    """Whether the backward pass that runs now was asked to retain its graph."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


class _Teacher:
    """The teacher's distributions of a few tokens, at the temperature."""

    def __init__(self, teacher: Dense | Sparse | None, size: int, temperature: float) -> None:
        self.teacher, self.size, self.temperature = teacher, size, temperature
        if isinstance(teacher, Dense):  # whole: what lies on padding rows is told
            self.weight = teacher.head.weight.detach().float()
            self.bias = None if teacher.head.bias is None else teacher.head.bias.detach().float()

    def log_p(self, some: slice) -> tuple[torch.Tensor, float]:
        """[n, size] log-probabilities over the real tokens, and the sum of the mass that lay on padding."""
        assert isinstance(self.teacher, Dense)
        with torch.no_grad():
            logits = self.teacher.head.logits(self.teacher.hidden[some], self.weight, self.bias)
            if self.temperature != 1.0:
                logits.div_(self.temperature)
            real = logits[:, : self.size]
            inside = real.logsumexp(-1)
            dropped = 0.0
            if logits.shape[1] > self.size:
                dropped = float((1 - (inside - logits.logsumexp(-1)).exp()).sum())
            return real.sub_(inside[:, None]).clamp_(min=LOWEST), dropped


def _chunk(
    logits_nV: torch.Tensor,
    taught: _Teacher,
    some: slice,
    labels_n: torch.Tensor | None,
    how: Settings,
    count: int,
    labelled: int,
    wanted: bool,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The gradient of the mean loss by these logits, [n, V] (their memory, or that of a copy), and the three parts."""
    soft, hard, dropped = 0.0, 0.0, 0.0
    gradient: torch.Tensor | None = None
    if labels_n is not None:
        counts = labels_n != IGNORED
        places = labels_n.clamp(min=0)[:, None]
        normal = logits_nV.logsumexp(-1)
        hard = float((normal - logits_nV.gather(1, places)[:, 0])[counts].sum()) * how.hard / labelled
        if wanted:
            gradient = (logits_nV - normal[:, None]).exp_()
            gradient.scatter_add_(1, places, gradient.new_full(places.shape, -1.0))
            gradient.mul_(counts[:, None] * (how.hard / labelled))
    if how.soft and taught.teacher is not None:
        t = how.temperature
        if t != 1.0:
            logits_nV.div_(t)
        if isinstance(taught.teacher, Sparse):
            values, term = _sparse(logits_nV, taught.teacher, some)
            dropped = 0.0 if taught.teacher.dropped is None else float(taught.teacher.dropped[some].sum())
        else:
            log_p, dropped = taught.log_p(some)
            log_q = logits_nV.sub_(logits_nV.logsumexp(-1, keepdim=True)).clamp_(min=LOWEST)
            values, term = DIVERGENCES[how.divergence](log_q, log_p)
        if taught.teacher.counts is not None:
            values.mul_(taught.teacher.counts[some])
            term.mul_(taught.teacher.counts[some, None])
        soft = float(values.sum()) * how.soft * t**2 / count
        if wanted:
            term.mul_(how.soft * t / count)  # T^2 of the loss, 1 / T of the logits
            gradient = term if gradient is None else gradient.add_(term)
    return gradient, torch.tensor([soft, hard, dropped / count], dtype=torch.float64)


def _sparse(logits_nV: torch.Tensor, teacher: Sparse, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """KL to a teacher of which K tokens are known, and its gradient, in the memory of the logits.

    The tokens outside share one bucket: within it the student may do as it likes. Its logarithm comes from those
    tokens themselves, not from 1 minus the others, which would be noise where the student is sure.
    """
    ids, log_p = teacher.ids[some].long(), teacher.log_probs[some].float().clamp(min=LOWEST)
    known = log_p > LOWEST
    # What fills a row up stays outside: it reads a token of the tail and writes it back.
    inside_nk = logits_nV.gather(1, ids).masked_fill(~known, -math.inf)
    logits_nV.scatter_reduce_(1, ids, torch.where(known, -math.inf, math.inf).to(logits_nV), "amin")
    rest_n = logits_nV.logsumexp(-1)
    normal_n = torch.logaddexp(inside_nk.logsumexp(-1), rest_n)
    log_q, log_rest = (inside_nk - normal_n[:, None]).clamp(min=LOWEST), (rest_n - normal_n).clamp(min=LOWEST)
    p = log_p.exp()
    missing = (1 - p.sum(-1)).clamp(min=0) if teacher.tail else p.new_zeros(len(p))
    missing = missing.masked_fill(rest_n == -math.inf, 0.0)  # all tokens are known, and what is missing is rounding
    values = (p * (log_p - log_q)).sum(-1) + torch.xlogy(missing, missing) - missing * log_rest
    rest = logits_nV.sub_(rest_n.clamp(min=LOWEST)[:, None]).exp_()  # the student within the bucket
    rest.mul_((log_rest.exp() - missing)[:, None])
    rest.scatter_add_(1, ids, (log_q.exp() - p) * known)
    return values, rest


def _forward(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p || q), q - p."""
    p = log_p.exp()
    values = _dot(p, log_p) - _dot(p, log_q)
    return values, log_q.exp_().sub_(p)


def _reverse(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q || p)."""
    q = log_q.exp()
    return _through(q, log_q.sub_(log_p), lambda q, ratio: _dot(q, ratio))


def _jensen_shannon(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2."""
    middle = torch.logaddexp(log_q, log_p).sub_(math.log(2))
    mine, theirs = log_q - middle, log_p - middle
    half = _dot(log_p.exp_(), theirs) / 2
    return _through(log_q.exp_(), mine.div_(2), lambda q, ratio: _dot(q, ratio) + half)


def _skew(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p || m), m = a p + (1 - a) q."""
    middle = torch.logaddexp(log_p + math.log(SKEW), log_q + math.log1p(-SKEW))
    ratio = log_p - middle  # log p / m
    values = _dot(log_p.exp(), ratio)
    return _through(log_q.exp_(), ratio.exp_().mul_(SKEW - 1), lambda q, slope: values)


def _skew_reverse(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q || m), m = a q + (1 - a) p."""
    middle = torch.logaddexp(log_q + math.log(SKEW), log_p + math.log1p(-SKEW))
    ratio = log_q - middle
    q = log_q.exp_()
    values = _dot(q, ratio)
    return _through(q, ratio.sub_(ratio.exp().mul_(SKEW)), lambda q, slope: values)


def _through(
    q: torch.Tensor, slope: torch.Tensor, value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss of q whose derivative is ``slope`` (up to a constant), by the logits: q (slope - <q, slope>)."""
    return value(q, slope), slope.sub_(_dot(q, slope)[:, None]).mul_(q)


def _dot(left_nV: torch.Tensor, right_nV: torch.Tensor) -> torch.Tensor:
    """Sums of products by row, [n], without a matrix of products."""
    return torch.linalg.vecdot(left_nV, right_nV)


DIVERGENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "forward-kl": _forward,
    "reverse-kl": _reverse,
    "jensen-shannon": _jensen_shannon,
    "skew-kl": _skew,
    "skew-reverse-kl": _skew_reverse,
}
