"""Time and memory of the loss stage of a language model: chunked against plain, dense and from a cache.

    python benchmarks/token_loss.py [--tokens 512] [--vocabulary 49152] [--rounds 5]

Forward KL, forward and backward to the student's hidden states and head, float32, one thread. `plain` is what one
writes by hand: both logit matrices, log_softmax, kl_div. `plain cached` reads the top 64 of a cache by autograd. Where
they are installed, TRL's and Liger's chunked losses run too. Each way runs in a process of its own; time is CPU
seconds, interleaved over the rounds; memory is the growth of the process's peak over its inputs and outputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from edgekd.losses import _tokens as tokens

STUDENT, TEACHER, TOP = 576, 960, 64
GOALS = {"chunked": (1.25, 0.6), "chunked cached": (0.7, 0.3)}


def ways() -> dict[str, Callable[..., torch.Tensor]]:
    """Loss by name, of (student hidden, student head, teacher hidden, teacher head, ids, log_probs)."""

    def plain(h: Any, w: Any, g: Any, u: Any, ids: Any, log_p: Any) -> torch.Tensor:
        return F.kl_div(F.log_softmax(h @ w.T, -1), F.log_softmax(g @ u.T, -1), log_target=True, reduction="batchmean")

    def plain_cached(h: Any, w: Any, g: Any, u: Any, ids: Any, log_p: Any) -> torch.Tensor:
        logits = h @ w.T
        log_q = logits.gather(1, ids) - logits.logsumexp(-1, keepdim=True)
        rest, missing = torch.log1p(-log_q.exp().sum(-1)), 1 - log_p.exp().sum(-1)
        return ((log_p.exp() * (log_p - log_q)).sum(-1) + missing * (missing.log() - rest)).mean()

    def chunked(h: Any, w: Any, g: Any, u: Any, ids: Any, log_p: Any) -> torch.Tensor:
        return tokens.loss(h, tokens.Head(w), tokens.Dense(g, tokens.Head(u)), None, tokens.Settings())[0]

    def chunked_cached(h: Any, w: Any, g: Any, u: Any, ids: Any, log_p: Any) -> torch.Tensor:
        return tokens.loss(h, tokens.Head(w), tokens.Sparse(ids, log_p), None, tokens.Settings())[0]

    found = {"plain": plain, "chunked": chunked, "plain cached": plain_cached, "chunked cached": chunked_cached}
    if importlib.util.find_spec("liger_kernel"):

        def liger(h: Any, w: Any, g: Any, u: Any, ids: Any, log_p: Any) -> torch.Tensor:
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

            loss = LigerFusedLinearJSDLoss(0.0, 1.0, 0.0, compiled=False, chunk_size=256)
            return loss(h, w, g, u, torch.zeros(len(h), dtype=torch.long))

        found["liger"] = liger
    return found


def one(name: str, count: int, vocabulary: int, out: Any) -> None:
    """CPU seconds, extra peak MB, loss and the gradients' norm of one way, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    h, w = torch.randn(count, STUDENT) / 4, torch.randn(vocabulary, STUDENT) / 8
    g, u = torch.randn(count, TEACHER) / 4, torch.randn(vocabulary, TEACHER) / 8
    ids = log_p = None
    if "cached" in name:
        parts = [(g[i : i + 16] @ u.T).log_softmax(-1).topk(TOP) for i in range(0, count, 16)]
        ids, log_p = torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
        del u
        u = None
    h.requires_grad_(), w.requires_grad_()
    h.grad, w.grad = torch.zeros_like(h), torch.zeros_like(w)
    w.grad.fill_(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    value = ways()[name](h, w, g, u, ids, log_p)
    value.backward()
    seconds = time.process_time() - began
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    out.put((seconds, extra, value.item(), float(w.grad.norm())))


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways()}
    for _ in range(asked.rounds):
        for name in found:
            queue = context.Queue()
            process = context.Process(target=one, args=(name, asked.tokens, asked.vocabulary, queue))
            process.start()
            found[name].append(queue.get(timeout=600))
            process.join()
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    base = medians["plain"]
    rows = {
        name: {
            "cpu_seconds": round(row[0], 3),
            "time_ratio": round(
                statistics.median(a[0] / b[0] for a, b in zip(found[name], found["plain"], strict=True)), 3
            ),
            "extra_peak_mb": round(row[1], 1),
            "memory_ratio": round(row[1] / base[1], 3),
            "loss": row[2],
            "gradient_norm": row[3],
            "goal": GOALS.get(name),
        }
        for name, row in medians.items()
    }
    shape = {"tokens": asked.tokens, "vocabulary": asked.vocabulary, "student": STUDENT, "teacher": TEACHER, "top": TOP}
    sys.stdout.write(
        json.dumps({"torch": torch.__version__, **shape, "rounds": asked.rounds, "ways": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
