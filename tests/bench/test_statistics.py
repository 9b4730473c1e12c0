"""Statistics against numpy, scipy, a plain bootstrap and closed forms."""

from __future__ import annotations

from typing import Any

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


def test_the_interval_of_a_ratio_is_the_two_level_bootstraps() -> None:
    a, b = ([CHANCE.gamma(3, scale, 40) for _ in range(5)] for scale in (110, 100))
    brute = []
    for _ in range(3000):
        drawn = [[side[i] for i in CHANCE.integers(len(side), size=len(side))] for side in (a, b)]
        above, below = (np.median([np.median(CHANCE.choice(one, len(one))) for one in side]) for side in drawn)
        brute.append(above / below)
    found = statistics.ratio_interval([x.tolist() for x in a], [x.tolist() for x in b], resamples=3000)
    assert found == pytest.approx(np.percentile(brute, [2.5, 97.5]).tolist(), abs=0.3 * np.std(brute))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 101])
def test_student_is_scipys(degrees: int) -> None:
    for t in (0.0, 0.1, -1.0, 2.5, 7.0, 40.0):
        assert statistics.student_p(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), abs=1e-12)
    for confidence in (0.5, 0.95, 0.98, 0.999):
        expected = stats.t.ppf(0.5 + confidence / 2, degrees)
        assert statistics.student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-6)


def _blocks(median: float, count: int = 3) -> list[list[float]]:
    return [CHANCE.normal(median, 1, 100).tolist() for _ in range(count)]


def _flat(blocks: list[list[float]]) -> list[float]:
    return [sample for block in blocks for sample in block]


def test_the_words() -> None:
    faster = statistics.compare(_blocks(80), _blocks(100))
    assert (faster.verdict, round(faster.ratio, 1)) == ("faster", 0.8)
    assert statistics.compare(_blocks(100), _blocks(80)).verdict == "slower"


@pytest.mark.parametrize(("count", "cut"), [(2, 0), (3, 0), (5, 0), (6, 1), (10, 2), (15, 3)])
def test_the_decision_is_a_trimmed_t_interval(count: int, cut: int) -> None:
    """Yuen's one-sample test by scipy (a t test of the paired logs where nothing is trimmed)."""
    a, b = ([[float(x)] for x in CHANCE.lognormal(5, 0.05, count)] for _ in range(2))
    logs = np.log(np.array(a) / np.array(b)).ravel()
    found = statistics.compare(a, b)
    assert found.ratio == pytest.approx(np.exp(stats.trim_mean(logs, cut / count + 1e-9)))
    winsorized = np.asarray(stats.mstats.winsorize(logs, (cut / count + 1e-9,) * 2))
    error = winsorized.std(ddof=1) / ((1 - 2 * cut / count) * count**0.5)
    low, high = stats.t.interval(0.98, count - 2 * cut - 1, np.log(found.ratio), error)
    assert found.interval == pytest.approx((np.exp(low), np.exp(high)))
    if not cut:
        assert found.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)


def test_a_small_difference_has_no_word_however_sure() -> None:
    found = statistics.compare(_blocks(100, 10), _blocks(102, 10))
    assert found.p < 1e-4
    assert found.verdict == "cannot tell" and "within 3 %" in found.why


def test_few_noisy_samples_have_no_word() -> None:
    found = statistics.compare([[100.0, 130.0, 90.0]], [[60.0, 70.0, 50.0]])
    assert found.verdict == "cannot tell" and "chance" in found.why and found.interval is None


def test_blocks_that_disagree_have_no_word() -> None:
    """A machine that slows down in the middle makes the p of pooled samples tiny; only the blocks tell."""
    a, b = [*_blocks(120, 2), *_blocks(90, 1)], _blocks(100)
    assert statistics.mann_whitney(_flat(a), _flat(b))[1] < 0.01
    found = statistics.compare(a, b)
    assert found.verdict == "cannot tell" and "chance" in found.why


def test_one_disturbed_block_of_ten_hides_nothing() -> None:
    slow = [*_blocks(105, 4), *_blocks(160, 1), *_blocks(105, 5)]
    found = statistics.compare(slow, _blocks(100, 10))
    assert found.verdict == "slower" and found.ratio == pytest.approx(1.05, abs=0.005)
    assert statistics.compare([*_blocks(100, 9), *_blocks(160, 1)], _blocks(100, 10)).verdict == "cannot tell"


def test_doubt_asks_for_a_large_difference() -> None:
    assert statistics.compare(_blocks(105, 10), _blocks(100, 10)).verdict == "slower"
    doubted = statistics.compare(_blocks(105, 10), _blocks(100, 10), doubt="other processes ran")
    assert doubted.verdict == "cannot tell" and "other processes ran" in doubted.why and doubted.interval
    assert statistics.compare(_blocks(50, 10), _blocks(100, 10), doubt="other processes ran").verdict == "faster"


def test_a_block_without_its_partner_is_left_out() -> None:
    one, other = _blocks(100, 4), _blocks(100, 4)
    holed = [[], *other[1:]]
    assert statistics.compare(one, holed) == statistics.compare(one[1:], other[1:])
    assert statistics.compare(one, other[:3]) == statistics.compare(one[:3], other[:3])


def _measured(blocks: int, noise: float, effect: float, burst: float, chance: np.random.Generator) -> Any:
    """Two artefacts as a machine gives them: 300 samples each in interleaved blocks of eight cycled texts.

    Levels wander (a random walk and a slope, 5 %), each block has a level of its own (``noise``) and, with probability
    ``burst``, a neighbour that costs up to half; samples within a block are correlated (0.7), and 2 % are outliers.
    """
    runs, sides = 300 // blocks, ([], [])  # type: ignore[var-annotated]
    walk = np.cumsum(chance.normal(0, 0.05 / (2 * blocks) ** 0.5 / 2, 2 * blocks)) + np.linspace(
        0, chance.normal(0, 0.05), 2 * blocks
    )
    texts = 1 + 0.04 * np.sin(np.arange(runs) % 8 * 1.7)
    for number in range(2 * blocks):
        if number % 2 == 0:
            order = chance.permutation(2)
        level = walk[number] + chance.normal(0, noise)
        level += abs(chance.normal(0, 0.3)) if chance.random() < burst else 0
        within = np.convolve(chance.normal(size=runs + 30), 0.7 ** np.arange(31), "valid") * 0.51**0.5
        samples = texts * np.exp(level + 0.02 * within)
        outliers = chance.random(runs) < 0.02
        samples[outliers] *= 1 + chance.pareto(2, outliers.sum()) / 2
        who = order[number % 2]
        sides[who].append((1e6 * samples * (1 + effect * (who == 0))).tolist())
    return sides


TRIALS = 300


@pytest.mark.parametrize(
    ("blocks", "noise", "burst", "most_false", "least_found"),
    [
        (10, 0.003, 0.0, 0.01, 0.99),
        (10, 0.01, 0.0, 0.01, 0.95),  # an idle machine
        (10, 0.02, 0.0, 0.02, 0.80),
        (10, 0.005, 0.1, 0.01, 0.80),  # each tenth block has a neighbour
        (10, 0.05, 0.0, 0.05, 0.10),  # a busy one: little can be told, and little is guessed
        (10, 0.15, 0.0, 0.05, 0.0),
        (3, 0.003, 0.0, 0.01, 0.40),  # three blocks are honest, and blind
        (3, 0.01, 0.0, 0.02, 0.15),
        (3, 0.05, 0.0, 0.05, 0.0),
    ],
)
def test_five_percent_is_found_and_noise_is_not(
    blocks: int, noise: float, burst: float, most_false: float, least_found: float
) -> None:
    chance = np.random.default_rng(11)
    same = [statistics.compare(*_measured(blocks, noise, 0, burst, chance)).verdict for _ in range(TRIALS)]
    slow = [statistics.compare(*_measured(blocks, noise, 0.05, burst, chance)).verdict for _ in range(TRIALS)]
    assert sum(word != "cannot tell" for word in same) <= most_false * TRIALS + 1
    assert slow.count("slower") >= least_found * TRIALS
    assert slow.count("faster") <= 0.01 * TRIALS


def test_three_blocks_on_one_side_are_no_proof() -> None:
    """What was asked before (3 %, Mann-Whitney p < 0.01, all of three blocks on one side) guesses on a busy machine."""
    chance, false = np.random.default_rng(5), 0
    for _ in range(TRIALS):
        a, b = _measured(3, 0.05, 0, 0, chance)
        ratio = statistics.block_median(a) / statistics.block_median(b)
        sides = {np.median(x) > np.median(y) for x, y in zip(a, b, strict=True)}
        false += abs(ratio - 1) > 0.03 and statistics.mann_whitney(_flat(a), _flat(b))[1] < 0.01 and len(sides) == 1
    assert false > 0.12 * TRIALS


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
