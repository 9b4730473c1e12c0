"""What may be said about raw samples: percentiles, an interval of the median, "is A faster?", stability.

Latencies are not normal, not independent and drift with the machine. So nothing here takes a mean: the
median is taken per block and then over blocks, the interval resamples blocks before samples, and "faster"
needs three things at once: a difference that matters, one that chance does not explain, and every block
agreeing. Empty sample sets are refused with ValueError. Pure Python: a phone-lab host needs no numpy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

PRACTICAL = 0.03  # a smaller relative difference of the medians is not worth a word
SIGNIFICANT = 0.01
RESAMPLES = 2000

Blocks = Sequence[Sequence[float]]


def percentile(samples: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0..100), linear between order statistics: numpy's default."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def block_median(blocks: Blocks) -> float:
    """Median of the block medians: one disturbed block of three does not move it far."""
    return median(median(block) for block in _filled(blocks))


def median_interval(
    blocks: Blocks, *, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile-bootstrap interval of ``block_median``; deterministic for a seed.

    Two levels (Davison and Hinkley 1997, section 3.8): blocks are drawn with replacement, then samples within
    each drawn block. The median of a resample of n values is one of the n order statistics, whose index is
    floor(n * U) with U beta-distributed; so it is drawn directly instead of resampling n values.
    """
    chance = random.Random(seed)
    ordered = [sorted(block) for block in _filled(blocks)]
    medians = sorted(
        median(_resampled_median(chance.choice(ordered), chance) for _ in ordered) for _ in range(resamples)
    )
    tail = (1 - confidence) / 2 * 100
    return percentile(medians, tail), percentile(medians, 100 - tail)


def _resampled_median(ordered: Sequence[float], chance: random.Random) -> float:
    """The median of a resample with replacement from sorted values, exact in distribution."""
    n = len(ordered)
    rank = (n + 1) // 2  # the lower middle one, counted from 1
    lower = chance.betavariate(rank, n - rank + 1)
    if n % 2:
        return ordered[min(int(n * lower), n - 1)]
    upper = lower + (1 - lower) * chance.betavariate(1, n - rank)  # the next order statistic of n uniforms
    return (ordered[min(int(n * lower), n - 1)] + ordered[min(int(n * upper), n - 1)]) / 2


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """U of ``a`` and the two-sided p value: normal approximation, corrected for ties and continuity.

    Mann and Whitney 1947; the same numbers as ``scipy.stats.mannwhitneyu(method="asymptotic")``.
    """
    if not a or not b:
        raise ValueError("no samples")
    n, m = len(a), len(b)
    ordered = sorted([(value, 0) for value in a] + [(value, 1) for value in b])
    rank_sum = ties = 0.0
    start = 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and ordered[end][0] == ordered[start][0]:
            end += 1
        same = end - start
        rank_sum += (start + end + 1) / 2 * sum(1 for _, owner in ordered[start:end] if owner == 0)
        ties += same**3 - same
        start = end
    u = rank_sum - n * (n + 1) / 2
    spread = math.sqrt(n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1))))
    if spread == 0:  # all values are equal
        return u, 1.0
    z = (max(u, n * m - u) - n * m / 2 - 0.5) / spread
    return u, min(1.0, math.erfc(z / math.sqrt(2)))


@dataclass(frozen=True)
class Comparison:
    """A against B. ``ratio`` is A's median over B's (below 1: A is faster)."""

    verdict: str  # "faster", "slower", "cannot tell"
    ratio: float
    p: float
    why: str


def compare(a: Blocks, b: Blocks) -> Comparison:
    """Is A faster or slower than B? Both are lists of blocks of samples that were taken interleaved.

    A word is given only when the medians of the block medians differ by more than 3 %, the Mann-Whitney test
    gives p < 0.01, and every block of A lies on the same side of the block of B that ran beside it. (Samples
    within a block are correlated, so p alone would call noise a difference.)
    """
    a, b = _filled(a), _filled(b)
    ratio = block_median(a) / max(block_median(b), 1e-9)
    _, p = mann_whitney([s for block in a for s in block], [s for block in b for s in block])
    sides = {(median(x) > median(y)) - (median(x) < median(y)) for x, y in zip(a, b, strict=False)}
    if abs(ratio - 1) <= PRACTICAL:
        return Comparison("cannot tell", ratio, p, f"the medians differ by {abs(ratio - 1):.1%}, within 3 %")
    if p >= SIGNIFICANT:
        return Comparison("cannot tell", ratio, p, f"chance explains it (p = {p:.2g})")
    if sides != {1 if ratio > 1 else -1}:
        return Comparison("cannot tell", ratio, p, "the blocks disagree")
    word = "slower" if ratio > 1 else "faster"
    return Comparison(word, ratio, p, f"by {abs(ratio - 1):.0%} in every one of {min(len(a), len(b))} blocks")


def stability(samples: Sequence[float]) -> float:
    """How much to trust these samples, 0 to 100: ExecuTorch's benchmark score (pytorch/executorch#10982).

    Half from the coefficient of variation, a quarter each from max/min and p99/p50. 90 and more is excellent,
    80 good, 60 moderate.
    """
    mean, low, p50 = fmean(samples), min(samples), percentile(samples, 50)
    if low <= 0:
        return 0.0
    variation = max(0.0, 100 - 10 * (100 * pstdev(samples) / mean))
    spread = max(0.0, 100 - 50 * (max(samples) / low - 1))
    tail = max(0.0, 100 - 100 * (percentile(samples, 99) / p50 - 1))
    return 0.5 * variation + 0.25 * spread + 0.25 * tail


def _filled(blocks: Blocks) -> Blocks:
    filled = [block for block in blocks if block]
    if not filled:
        raise ValueError("no samples")
    return filled
