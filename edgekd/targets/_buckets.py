"""Length buckets: which few input lengths of a fixed-length file waste the fewest tokens on padding.

A text of n tokens runs at the smallest length that holds it, so a file of one length spends ``max_length`` tokens on
every text. What is minimised is the number of tokens computed, summed over the texts: the linear layers, which take
most of the time of short texts, cost the same for each of them.

Kernels multiply several tokens at once, so a length costs about what the next multiple of such a tile costs, and may
as well be it. In XNNPACK's dynamic int8 layers 13 to 16 tokens take the same time, 17 to 20 a quarter more and 24 half
as much again (384 x 1536, one thread of an x86 processor); so larger multiples than ``TILE`` would cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

TILE = 4  # tokens
Histogram = Mapping[int, int]  # number of texts by their number of tokens


def plan(histogram: Histogram, longest: int, count: int) -> list[int]:
    """The ``count`` lengths that hold all texts in the fewest tokens, ascending; the last is ``longest``.

    The others are multiples of ``TILE``, and fewer where more would save nothing. Longer texts count as ``longest``
    (they are cut). Exact: dynamic programming over the lengths that texts need, at one of which each bucket ends.
    """
    needed: Counter[int] = Counter()
    for length, texts in histogram.items():
        needed[min(-(-length // TILE) * TILE, longest)] += texts
    ends = sorted({*(length for length, texts in needed.items() if texts), longest})
    below = [*accumulate(needed[end] for end in ends)]  # of at most this length
    # For the texts of the first i + 1 ends: tokens, number of lengths, lengths. The least is the best.
    best = [(end * below[i], 1, (end,)) for i, end in enumerate(ends)]
    for _ in range(count - 1):
        best = [
            min(
                [
                    best[i],
                    *(
                        (tokens + end * (below[i] - below[j]), number + 1, (*lengths, end))
                        for j, (tokens, number, lengths) in enumerate(best[:i])
                    ),
                ]
            )
            for i, end in enumerate(ends)
        ]
    return list(best[-1][2])


def padding(histogram: Histogram, lengths: Sequence[int]) -> float:
    """Padded tokens / real tokens - 1 over all texts, each at the smallest of ``lengths`` that holds it; 0 of none."""
    cut = [(min(length, max(lengths)), texts) for length, texts in histogram.items()]
    real = sum(length * texts for length, texts in cut)
    computed = sum(min(one for one in lengths if one >= length) * texts for length, texts in cut)
    return computed / real - 1 if real else 0.0
