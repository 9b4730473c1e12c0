"""Statistics against numpy, scipy, a plain bootstrap and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgekd.bench import statistics

CHANCE = np.random.default_rng(7)


@pytest.mark.parametrize("size", [1, 2, 5, 100, 101])
@pytest.mark.parametrize("q", [0, 1, 50, 90, 99, 100])
def test_percentiles_are_numpys(size: int, q: int) -> None:
    samples = CHANCE.gamma(2, 1000, size).round().tolist()
    assert statistics.percentile(samples, q) == pytest.approx(np.percentile(samples, q), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(3, 5), (40, 60), (500, 300)])
@pytest.mark.parametrize("shift", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("ties", [False, True])
def test_mann_whitney_is_scipys(n: int, m: int, shift: float, ties: bool) -> None:
    a, b = CHANCE.normal(size=n) + shift, CHANCE.normal(size=m)
    if ties:
        a, b = a.round(), b.round()
    u, p = statistics.mann_whitney(a.tolist(), b.tolist())
    expected = stats.mannwhitneyu(a, b, alternative="two-sided", method="asymptotic")
    assert u == expected.statistic
    assert p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)


def test_equal_samples_say_nothing() -> None:
    assert statistics.mann_whitney([5.0] * 4, [5.0] * 9)[1] == 1.0


@pytest.mark.parametrize("sizes", [(40, 41, 60), (30,), (2, 3)])
def test_the_interval_is_the_two_level_bootstraps(sizes: tuple[int, ...]) -> None:
    blocks = [CHANCE.gamma(3, 100, size) + 20 * n for n, size in enumerate(sizes)]
    brute = []
    for _ in range(6000):
        drawn = [blocks[i] for i in CHANCE.integers(len(blocks), size=len(blocks))]
        brute.append(np.median([np.median(CHANCE.choice(block, len(block))) for block in drawn]))
    expected = np.percentile(brute, [2.5, 97.5])
    found = statistics.median_interval([block.tolist() for block in blocks], resamples=6000)
    spread = np.std(brute)
    assert found[0] == pytest.approx(expected[0], abs=0.3 * spread)
    assert found[1] == pytest.approx(expected[1], abs=0.3 * spread)


def test_the_interval_covers_the_true_median() -> None:
    true, hits = 100 * np.log(2), 0  # median of an exponential with mean 100
    for trial in range(200):
        blocks = [CHANCE.exponential(100, 40).tolist() for _ in range(5)]
        low, high = statistics.median_interval(blocks, seed=trial, resamples=400)
        hits += low <= true <= high
    assert hits >= 180  # nominally 190 of 200


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    blocks = [[1.0, 2.0, 4.0, 9.0], [2.0, 3.0, 5.0]]
    assert statistics.median_interval(blocks, seed=3) == statistics.median_interval(blocks, seed=3)
    assert statistics.median_interval([[7.0]]) == (7.0, 7.0)


def _blocks(median: float, count: int = 3) -> list[list[float]]:
    return [CHANCE.normal(median, 1, 100).tolist() for _ in range(count)]


def test_the_words() -> None:
    faster = statistics.compare(_blocks(80), _blocks(100))
    assert (faster.verdict, round(faster.ratio, 1)) == ("faster", 0.8)
    assert statistics.compare(_blocks(100), _blocks(80)).verdict == "slower"


def test_a_small_difference_has_no_word_however_sure() -> None:
    found = statistics.compare(_blocks(100), _blocks(102))
    assert found.p < 1e-6
    assert found.verdict == "cannot tell" and "3 %" in found.why


def test_few_noisy_samples_have_no_word() -> None:
    found = statistics.compare([[100.0, 130.0, 90.0]], [[90.0, 120.0, 80.0]])
    assert found.verdict == "cannot tell" and "chance" in found.why


def test_blocks_that_disagree_have_no_word() -> None:
    """A machine that slows down in the middle makes p tiny; only the blocks tell."""
    found = statistics.compare([*_blocks(120, 2), *_blocks(90, 1)], _blocks(100))
    assert found.p < 0.01
    assert found.verdict == "cannot tell" and "disagree" in found.why


def test_stability_is_executorchs_score() -> None:
    assert statistics.stability([5.0] * 10) == 100
    samples = CHANCE.normal(100, 3, 500).clip(80).tolist()
    variation = max(0, 100 - 10 * 100 * np.std(samples) / np.mean(samples))
    spread = max(0, 100 - 50 * (max(samples) / min(samples) - 1))
    tail = max(0, 100 - 100 * (np.percentile(samples, 99) / np.percentile(samples, 50) - 1))
    assert statistics.stability(samples) == pytest.approx(0.5 * variation + 0.25 * spread + 0.25 * tail)


def test_no_samples_are_refused() -> None:
    for call in (
        lambda: statistics.percentile([], 50),
        lambda: statistics.block_median([[], []]),
        lambda: statistics.median_interval([]),
        lambda: statistics.mann_whitney([], [1.0]),
        lambda: statistics.compare([[1.0]], [[]]),
    ):
        with pytest.raises(ValueError, match="no samples"):
            call()


def test_an_empty_block_is_left_out() -> None:
    assert statistics.block_median([[], [3.0, 4.0, 5.0]]) == 4.0
