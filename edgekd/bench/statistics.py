"""What may be said about raw samples: percentiles, an interval of the median, "is A faster?", stability.

Latencies are not normal, not independent and drift with the machine. So nothing here takes a mean of samples: the
median is taken per block and then over blocks, an interval of a median resamples blocks before samples, and "faster"
is a statement about blocks, not about samples: thousands of samples of three blocks are three observations of what
the machine did. Empty sample sets are refused with ValueError. Pure Python: a phone-lab host needs no numpy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev, stdev

PRACTICAL = 0.03  # a smaller relative difference of the medians is not worth a word
DOUBTFUL = 0.10  # the same where the machine was busy: see ``compare``
CONFIDENCE = 0.98  # of the interval that decides a word; tests/bench/test_statistics.py has what it costs and finds
TRIM = 5  # one block in this many is cut off at either end, from TRIM + 1 blocks on
RESAMPLES = 2000
WINDOWS = 10  # parts of a sustained run

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


def curve(samples: Sequence[float], points: int = 41) -> list[list[float]]:
    """The distribution as ``[[value, share at most so large], ...]``: quantiles evenly apart, and 95, 99 and 100 %."""
    ordered = sorted(samples)
    shares = sorted({*(n / (points - 1) for n in range(points)), 0.95, 0.99})
    return [[percentile(ordered, 100 * share), round(share, 4)] for share in shares]


def drift(samples: Sequence[float]) -> float | None:
    """Median of the last tenth over that of the first: a run without a pause that got slower; None for under 10."""
    size = len(samples) // WINDOWS
    return round(median(samples[-size:]) / max(median(samples[:size]), 1), 4) if size else None


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
    medians = sorted(_resampled(blocks, random.Random(seed), resamples))
    tail = (1 - confidence) / 2 * 100
    return percentile(medians, tail), percentile(medians, 100 - tail)


def ratio_interval(
    a: Blocks, b: Blocks, *, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile-bootstrap interval of ``block_median(a) / block_median(b)``, both resampled alone.

    For blocks that were *not* taken side by side (two runs): it knows how blocks of one run differ, not how runs do.
    """
    chance = random.Random(seed)
    above, below = (_resampled(blocks, chance, resamples) for blocks in (a, b))
    ratios = sorted(x / max(y, 1e-9) for x, y in zip(above, below, strict=True))
    tail = (1 - confidence) / 2 * 100
    return percentile(ratios, tail), percentile(ratios, 100 - tail)


def _resampled(blocks: Blocks, chance: random.Random, resamples: int) -> list[float]:
    """``block_median`` of so many resamples."""
    ordered = [sorted(block) for block in _filled(blocks)]
    return [median(_resampled_median(chance.choice(ordered), chance) for _ in ordered) for _ in range(resamples)]


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


def student_p(t: float, degrees: int) -> float:
    """Two-sided p value of Student's t with a whole number of degrees of freedom, to about 1e-15.

    The finite series of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, degrees, 2):  # cos^k with its coefficient, a product of (k - 1) / k
        total += term
        term *= k / (k + 1) * cosine * cosine
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1 - within))


def student_quantile(confidence: float, degrees: int) -> float:
    """The t that a share ``confidence`` of Student's distribution stays within, on both sides; by bisection."""
    low, high = 0.0, 1.0
    while student_p(high, degrees) > 1 - confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, degrees) > 1 - confidence else (low, middle)
    return high


@dataclass(frozen=True)
class Comparison:
    """A against B. ``ratio`` is A's latency over B's (below 1: A is faster), ``interval`` bounds it (98 %)."""

    verdict: str  # "faster", "slower", "cannot tell"
    ratio: float
    p: float  # of "no difference", over blocks
    why: str
    interval: tuple[float, float] | None = None  # None where a single pair of blocks bounds nothing


def compare(a: Blocks, b: Blocks, *, doubt: str = "") -> Comparison:
    """Is A faster or slower than B? Both are lists of blocks of samples that were taken interleaved.

    Block n of A ran beside block n of B, so what counts is the logarithm of the ratio of their medians: one
    observation a pair, in which drift cancels. Over the pairs stands a trimmed mean (a fifth at either end) with its
    t interval (Tukey and McLaughlin 1963), so that one disturbed block neither moves nor widens it much. A word is
    given when the mean ratio is more than 3 % from 1 and its 98 % interval leaves 1 out.

    Samples within a block are correlated, so no test of pooled samples is asked; and that all of three blocks agree
    happens by chance once in four. ``doubt`` says why the machine is not to be trusted (other processes used it): then
    a word needs 10 %, because a load that comes and goes with one of the two looks like a small difference.
    """
    pairs = [(median(x), median(y)) for x, y in zip(a, b, strict=False) if x and y]
    if not pairs:
        raise ValueError("no samples")
    logs = sorted(math.log(max(x, 1e-9) / max(y, 1e-9)) for x, y in pairs)
    count = len(logs)
    cut = count // TRIM if count > TRIM else 0
    kept = logs[cut : count - cut]
    ratio = math.exp(fmean(kept))
    if count == 1:
        return Comparison("cannot tell", ratio, 1.0, "one pair of blocks does not show what chance does")
    degrees = count - 2 * cut - 1
    winsorized = [*[kept[0]] * cut, *kept, *[kept[-1]] * cut]
    error = stdev(winsorized) / ((1 - 2 * cut / count) * math.sqrt(count))
    p = student_p(fmean(kept) / error, degrees) if error else float(ratio == 1)
    half = student_quantile(CONFIDENCE, degrees) * error
    interval = (math.exp(fmean(kept) - half), math.exp(fmean(kept) + half))
    least = DOUBTFUL if doubt else PRACTICAL
    told = f"98 % interval of the ratio {interval[0]:.3f} to {interval[1]:.3f} over {count} pairs of blocks"
    if interval[0] <= 1 <= interval[1]:
        said = "" if abs(ratio - 1) > least else f"they differ by {abs(ratio - 1):.1%}, within {100 * least:.0f} %; "
        return Comparison("cannot tell", ratio, p, f"{said}chance explains it: {told}", interval)
    if abs(ratio - 1) <= least:
        why = f"they differ by {abs(ratio - 1):.1%}, within {100 * least:.0f} %" + (f", and {doubt}" if doubt else "")
        return Comparison("cannot tell", ratio, p, why, interval)
    word = "slower" if ratio > 1 else "faster"
    return Comparison(word, ratio, p, f"by {abs(ratio - 1):.0%}: {told}", interval)


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
