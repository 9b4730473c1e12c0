"""What a language model's cache keeps of a distribution over V tokens: K of them, in about 2.3 bytes each.

``top:K`` are the likeliest tokens with their log-probabilities; what is missing to 1 is a bucket of its own.
``sampled:K`` are K draws from the whole distribution, each token with how often it was drawn: an unbiased estimate of
the gradient, where the top alone teaches that nothing else exists (Anshumann et al. 2025, arXiv:2503.16870).

One token's record has a fixed length, so any token can be read alone:

- ids, sorted: Elias-Fano (P. Elias 1974): the low bits as they are, the high bits as a bitmap in which the i-th id of
  high part h sets bit h + i. For K = 64 of V = 50,000: 92 bytes, where plain 16-bit ids take 128.
- numbers, 6 bits each: for ``top`` the log-probability between the row's largest and smallest, on a square scale
  (finest at the top, where the mass is); for ``sampled`` the count (0 fills a record up).
- ``top`` only: largest and smallest log-probability and the logarithm of the mass of all K, float16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

LEVELS = 64  # of a number
NUMBER_BITS = 6
LEAST = 1e-3  # of a distribution: what float16 masses can still tell from nothing
HEADER = 6  # bytes: three float16
KINDS = ("top", "sampled")


@dataclass(frozen=True)
class Kind:
    """``top:64`` or ``sampled:64``, for a vocabulary."""

    name: str
    count: int  # K
    vocabulary: int  # V

    @property
    def low_bits(self) -> int:
        """Bits of an id that are stored as they are."""
        return max(0, int(math.log2(self.vocabulary / self.count))) if self.vocabulary > self.count else 0

    @property
    def high_bits(self) -> int:
        """Length of the bitmap."""
        return self.count + ((self.vocabulary - 1) >> self.low_bits) + 1

    @property
    def size(self) -> int:
        """Bytes of a token's record."""
        bits = self.count * (self.low_bits + NUMBER_BITS) + self.high_bits
        return -(-bits // 8) + (HEADER if self.name == "top" else 0)


def is_kind(name: str) -> bool:
    """Whether a kind of knowledge is one of these."""
    return name.partition(":")[0] in KINDS


def kind(name: str, vocabulary: int) -> Kind:
    """``top:64`` as a Kind; K is at most the vocabulary."""
    what, _, count = name.partition(":")
    return Kind(what, min(int(count), vocabulary), vocabulary)


def encode(logits_TV: torch.Tensor, how: Kind, generator: torch.Generator | None = None) -> torch.Tensor:
    """The records of T distributions (logits of at least V columns; more are padding), [T, size] uint8.

    ``generator`` draws the samples of ``sampled``.
    """
    logits = logits_TV[:, : how.vocabulary].float()
    if how.name == "top":
        log_p = logits - logits.logsumexp(-1, keepdim=True)
        values, ids = (one.cpu() for one in log_p.topk(how.count, dim=-1))
        return _packed(*_sorted(ids, *_levels(values)), values.logsumexp(-1), how)
    drawn = torch.multinomial(
        logits.softmax(-1).cpu(), min(how.count, LEVELS - 1), replacement=True, generator=generator
    )
    ids, counts = _counted(drawn, how)
    return _packed(ids, counts, None, None, None, how)


def decode(records: torch.Tensor, how: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [T, K] int64 (each once, sorted) and log-probabilities [T, K] float32; minus infinity fills a row up.

    Those of ``top`` add up to the mass that the K tokens had; those of ``sampled`` to 1.
    """
    raw = np.ascontiguousarray(records.numpy())
    rows, count = len(raw), how.count
    head = HEADER if how.name == "top" else 0
    bits = np.unpackbits(raw[:, head:], axis=1, bitorder="little")
    low_end, numbers_end = count * how.low_bits, count * (how.low_bits + NUMBER_BITS)
    low = _from_bits(bits[:, :low_end].reshape(rows, count, how.low_bits))
    levels = _from_bits(bits[:, low_end:numbers_end].reshape(rows, count, NUMBER_BITS))
    set_bits = np.nonzero(bits[:, numbers_end : numbers_end + how.high_bits])[1].reshape(rows, count)
    ids = torch.from_numpy(((set_bits - np.arange(count)) << how.low_bits) + low)
    if how.name == "sampled":
        counts = torch.from_numpy(levels).float()
        return ids, (counts / counts.sum(-1, keepdim=True)).log()
    largest, smallest, mass = torch.from_numpy(raw[:, :head].copy().view(np.float16).astype(np.float32)).unbind(1)
    share = torch.from_numpy(levels).float() / (LEVELS - 1)
    log_p = largest[:, None] - share.square() * (largest - smallest)[:, None]
    return ids, log_p + (mass.clamp(max=0) - log_p.logsumexp(-1))[:, None]


def among(
    ids: torch.Tensor, log_p: torch.Tensor, new_V: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decoded distributions [T, K] among fewer tokens: ``new_V`` is each token's new id, -1 for one that is gone.

    What is left is the distribution given that the next token is none of those that are gone, as far as they are
    known: it is scaled up, and with it what the K tokens leave for all others. Returns new ids, log-probabilities
    (minus infinity for what is gone) and the probability [T] that was taken away. Above 1 - ``LEAST`` of it nothing is
    left to scale.
    """
    new = new_V[ids]
    gone = new < 0
    lost = log_p.exp().masked_fill(~gone, 0.0).sum(-1)
    scaled = log_p - torch.log1p(-lost.clamp(max=1 - LEAST))[:, None]
    return new.clamp(min=0), scaled.masked_fill(gone, -math.inf), lost


def _levels(values_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels of log-probabilities, and the ends of each row's scale as float16 will hold them."""
    largest = values_TK.amax(-1).half().float()
    smallest = values_TK.amin(-1).clamp(min=-6e4).half().float()
    span = (largest - smallest).clamp(min=1e-6)[:, None]
    share = ((largest[:, None] - values_TK) / span).clamp(0, 1)
    return (share.sqrt() * (LEVELS - 1)).round().long(), largest, smallest


def _sorted(
    ids: torch.Tensor, levels: torch.Tensor, largest: torch.Tensor, smallest: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    order = ids.argsort(-1)
    return ids.gather(-1, order), levels.gather(-1, order), largest, smallest


def _counted(drawn_TN: torch.Tensor, how: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Each drawn token once with its count, sorted by id; tokens that were not drawn fill the row up with count 0."""
    rows = len(drawn_TN)
    counts = torch.zeros(rows, how.vocabulary, dtype=torch.int64)
    counts.scatter_add_(1, drawn_TN, torch.ones_like(drawn_TN))
    kept = counts.topk(how.count, dim=-1).indices.sort(-1).values
    return kept, counts.gather(1, kept)


def _packed(
    ids: torch.Tensor,
    levels: torch.Tensor,
    largest: torch.Tensor | None,
    smallest: torch.Tensor | None,
    mass: torch.Tensor | None,
    how: Kind,
) -> torch.Tensor:
    rows = len(ids)
    numbers = ids.numpy()
    low = _to_bits(numbers & ((1 << how.low_bits) - 1), how.low_bits)
    level = _to_bits(levels.numpy(), NUMBER_BITS)
    high = np.zeros((rows, how.high_bits), np.uint8)
    np.put_along_axis(high, (numbers >> how.low_bits) + np.arange(how.count), 1, axis=1)
    body = np.packbits(np.concatenate((low, level, high), 1), axis=1, bitorder="little")
    if largest is None or smallest is None or mass is None:
        return torch.from_numpy(body)
    head = torch.stack((largest, smallest, mass.clamp(max=0)), 1).numpy().astype(np.float16).view(np.uint8)
    return torch.from_numpy(np.concatenate((head, body), 1))


def _to_bits(values_TK: np.ndarray, width: int) -> np.ndarray:
    bits = (values_TK[:, :, None] >> np.arange(width)) & 1
    return bits.astype(np.uint8).reshape(len(values_TK), -1)


def _from_bits(bits: np.ndarray) -> np.ndarray:
    """Numbers [..., w bits] as int64 [...]; at most 32 bits each."""
    wide = np.zeros((*bits.shape[:-1], 32), np.uint8)
    wide[..., : bits.shape[-1]] = bits
    return np.packbits(wide, axis=-1, bitorder="little").view("<u4")[..., 0].astype(np.int64)
