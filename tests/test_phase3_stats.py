"""The statistics of the harness, against hand-computed values, published tables and planted truths."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase3.stats import (
    EXACT_PAIRS,
    _rank_sum_counts,
    _tail_ranks,
    change,
    compare,
    median,
    percentile,
    slope,
    stable,
    summary,
    t_quantile,
)

SEEDS = range(20)
KB, MB = 1e3, 1e6
FIGURES = st.floats(min_value=1e-3, max_value=1e9)
SAMPLES = st.lists(FIGURES, min_size=1, max_size=30)


def test_percentile_interpolates_between_neighbours() -> None:
    """Value number (n - 1) p / 100, counted from 0: of 1, 2, 3, 4 the 90th is number 2.7."""
    assert percentile([4, 1, 3, 2], 90) == pytest.approx(3.7)
    assert percentile([10, 20, 30, 40, 50], 25) == 20
    assert percentile([15, 20, 35, 40, 50], 40) == pytest.approx(29)
    assert percentile([7], 99) == 7


def test_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    """1, 2, 4, 9: 3."""
    assert median([9, 1, 4, 2]) == 3
    assert median([9, 1, 4]) == 4


def test_summary_of_one_to_a_hundred() -> None:
    """Positions 49.5, 89.1 and 98.01 of 1..100."""
    found = summary(range(100, 0, -1))
    assert (found.median, found.min, found.max, found.n) == (50.5, 1, 100, 100)
    assert (found.p90, found.p99) == pytest.approx((90.1, 99.01))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_a_sample_that_says_nothing_is_refused(values: list[float]) -> None:
    """No values, NaN and infinity have no summary; a NaN would sort anywhere."""
    with pytest.raises(ValueError, match="expected"):
        summary(values)


@pytest.mark.parametrize("p", [-1, 101, math.nan])
def test_a_percentage_out_of_range_is_refused(p: float) -> None:
    """p is 0 to 100."""
    with pytest.raises(ValueError, match="0 to 100"):
        percentile([1, 2], p)


@given(SAMPLES, st.floats(0, 100), st.floats(0, 100))
def test_percentiles_rise_and_stay_within_the_sample(values: list[float], p: float, q: float) -> None:
    """A higher percentile is no lower, and neither leaves the extremes (but for rounding)."""
    low, high = sorted((p, q))
    tiny = 1e-9 * max(values)
    assert min(values) - tiny <= percentile(values, low) <= percentile(values, high) + tiny
    assert percentile(values, high) <= max(values) + tiny


def test_stable_once_the_last_three_agree_within_five_percent() -> None:
    """The span of the last three against 5 % of their median; earlier values do not count."""
    assert stable([9.0, 5.0, 1.00, 1.05, 1.02])
    assert not stable([1.00, 1.06, 1.02])
    assert not stable([1.0, 1.0, 1.0, 1.2])
    assert not stable([1.0, 1.0])
    assert stable([1.0, 1.1], within=0.1, last=2)


def test_stable_needs_two_values_to_compare() -> None:
    """One value always agrees with itself: asking for it is a mistake."""
    with pytest.raises(ValueError, match="at least 2"):
        stable([1.0], last=1)


# Two-sided 95 %, 99 % and 90 % of the usual printed tables.
T_TABLE = {
    0.975: {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 10: 2.228, 20: 2.086}
    | {29: 2.045, 30: 2.042, 60: 2.000, 100: 1.984, 120: 1.980, 1000: 1.962},
    0.995: {1: 63.657, 2: 9.925, 5: 4.032, 10: 3.169, 30: 2.750, 120: 2.617},
    0.95: {1: 6.314, 2: 2.920, 5: 2.015, 10: 1.812, 30: 1.697, 120: 1.658},
}


@pytest.mark.parametrize(("p", "degrees"), [(p, d) for p, row in T_TABLE.items() for d in row])
def test_t_quantile_agrees_with_printed_tables(p: float, degrees: int) -> None:
    """To the three digits that tables print."""
    assert t_quantile(p, degrees) == pytest.approx(T_TABLE[p][degrees], abs=5.1e-4)


def test_t_quantile_has_closed_forms_at_one_and_two_degrees() -> None:
    """tan(pi (p - 1/2)) and (2p - 1) / sqrt(2 p (1 - p)), to all digits."""
    for p in (0.5, 0.6, 0.9, 0.975, 0.9999):
        assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9, abs=1e-12)
        expected = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
        assert t_quantile(p, 2) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("p", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_t_quantile_refuses_what_it_cannot_answer(p: float, degrees: int) -> None:
    """The lower half is the mirror of the upper; 1 is infinite; no degrees, no distribution."""
    with pytest.raises(ValueError, match="expected"):
        t_quantile(p, degrees)


def test_slope_by_hand() -> None:
    """x 1..5, y 2 4 5 4 5: slope 6/10; squared residuals 2.4; t(3) sqrt(2.4/3/10) = 3.18245 x 0.28284."""
    found = slope([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    assert found.per_x == pytest.approx(0.6)
    assert found.high == pytest.approx(0.6 + 3.182446 * math.sqrt(0.08), rel=1e-6)
    assert 0.6 - found.low == pytest.approx(found.high - 0.6)
    assert found.n == 5


def test_slope_of_a_longer_series_by_hand() -> None:
    """Each of 0 1 0 1 0 1 0 1 twice over x 0..15: slope 8/340 of the points, its width from the pairs.

    The pairs' means lie 2 apart: slope 1/42, squared residuals 2 - 4/42, over 6 degrees and 168.
    """
    found = slope(range(16), [0, 0, 1, 1] * 4)
    assert found.per_x == pytest.approx(8 / 340)
    half = 2.446912 * math.sqrt((2 - 4 / 42) / 6 / 168)
    assert (found.low, found.high) == pytest.approx((8 / 340 - half, 8 / 340 + half))
    assert found.n == 16


def test_slope_of_an_exact_line_has_no_width() -> None:
    """No residuals, no doubt."""
    found = slope([0, 1, 2, 3], [5, 7, 9, 11])
    assert (found.per_x, found.low, found.high) == (2, 2, 2)


@pytest.mark.parametrize(("xs", "ys"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([1, 1, 1], [1, 2, 3])])
def test_slope_refuses_what_has_none(xs: list[float], ys: list[float]) -> None:
    """Two points have no error, other lengths no pairs, one place no slope."""
    with pytest.raises(ValueError, match="slope"):
        slope(xs, ys)


@given(st.lists(st.integers(-1000, 1000), min_size=4, max_size=30), st.integers(-50, 50))
def test_slope_follows_a_line_added_to_the_series(ys: list[int], extra: int) -> None:
    """Adding extra * x adds extra to the slope, and leaves the width of its interval."""
    xs = list(range(len(ys)))
    plain, tilted = slope(xs, ys), slope(xs, [y + extra * x for x, y in zip(xs, ys, strict=True)])
    assert tilted.per_x == pytest.approx(plain.per_x + extra, abs=1e-6)
    if plain.high - plain.low > 1e-6:
        assert tilted.high - tilted.low == pytest.approx(plain.high - plain.low, rel=1e-4)


def memory_of_a_machine(seed: int, leak: float = 0.0, stays: float = 0.9) -> list[float]:
    """Bytes after each of 200 requests: 2 MB of reading noise on 1.5 MB of drift, of which much stays."""
    rng = random.Random(seed)  # noqa: S311
    drift, series = 0.0, []
    for i in range(200):
        drift = stays * drift + rng.gauss(0, 1.5 * MB * math.sqrt(1 - stays**2))
        series.append(3e9 + leak * i + drift + rng.gauss(0, 2 * MB))
    return series


LEAK_LIMIT = 20 * KB


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_of_100_kb_per_request_is_found(seed: int) -> None:
    """The whole interval is above 20 kB, and the truth is about in it."""
    found = slope(range(200), memory_of_a_machine(seed, leak=100 * KB))
    assert found.low > LEAK_LIMIT
    assert abs(found.per_x - 100 * KB) < 40 * KB


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clean_series_is_not_accused(seed: int) -> None:
    """Noise and drift without a leak: the interval reaches below the limit."""
    assert slope(range(200), memory_of_a_machine(seed)).low <= LEAK_LIMIT


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_that_shows_in_pages_is_found(seed: int) -> None:
    """100 kB per request, taken from the system 1 MB at a time."""
    series = [y + i // 10 * MB for i, y in enumerate(memory_of_a_machine(seed))]
    assert slope(range(200), series).low > LEAK_LIMIT


@pytest.mark.parametrize(("stays", "least"), [(0.0, 0.92), (0.9, 0.86)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(stays: float, least: float) -> None:
    """Of 400 intervals 95 % should hold the planted slope; where drift outlasts a group, some fewer do."""
    slopes = [slope(range(200), memory_of_a_machine(seed, leak=50 * KB, stays=stays)) for seed in range(400)]
    assert sum(s.low <= 50 * KB <= s.high for s in slopes) >= 400 * least


def test_rank_sum_counts_agree_with_counting() -> None:
    """U of all orders of 3 and 4 values, counted one by one."""
    counted: Counter[int] = Counter()
    for places in itertools.combinations(range(7), 3):
        counted[sum(place - rank for rank, place in enumerate(places))] += 1
    assert _rank_sum_counts(3, 4) == [counted[u] for u in range(13)]


@pytest.mark.parametrize(
    ("m", "n", "critical"),
    [(4, 4, 0), (5, 5, 2), (5, 8, 6), (6, 6, 5), (8, 8, 13), (10, 10, 23), (15, 15, 64), (20, 20, 127)],
)
def test_the_interval_ends_where_the_printed_u_tables_say(m: int, n: int, critical: int) -> None:
    """The largest U that is significant at 5 %, two-sided; one more rank lies beyond the interval's end."""
    assert _tail_ranks(m, n) == _tail_ranks(n, m) == critical + 1


def test_the_approximation_of_large_samples_meets_the_exact_ranks() -> None:
    """At the border of the two ways, 50 x 50 pairs, they differ by a rank at most."""
    assert EXACT_PAIRS == 50 * 50
    z = 1.959964
    assert abs(_tail_ranks(50, 50) - (1250 - z * math.sqrt(2500 * 101 / 12))) <= 1
    assert _tail_ranks(51, 50) == math.floor(1275 - z * math.sqrt(2550 * 102 / 12))


def test_change_by_hand() -> None:
    """1 2 3 4 against 10 20 30 40: of the 16 ratios the ends are 10/4 and 40/1, the middle two both 10."""
    found = change([1, 2, 3, 4], [10, 20, 30, 40])
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((9, 1.5, 39))


def test_change_is_unknown_when_the_samples_are_small_or_have_no_ratio() -> None:
    """Three against three cannot reach 95 %; zero cannot be divided by."""
    assert change([1, 1, 1], [9, 9, 9]) is None
    assert change([0, 1, 1, 1, 1], [9, 9, 9, 9, 9]) is None
    assert compare([1, 1, 1], [9, 9, 9], "higher") == "cannot tell"


def test_better_says_which_way_is_faster() -> None:
    """More tokens/s are faster, more seconds are slower."""
    old, new = [100, 101, 102, 103, 104], [120, 121, 122, 123, 124]
    assert compare(old, new, "higher") == "faster"
    assert compare(old, new, "lower") == "slower"
    assert compare(new, old, "higher") == "slower"
    assert compare(new, old, "lower") == "faster"
    with pytest.raises(ValueError, match="better"):
        compare(old, new, "bigger")  # type: ignore[arg-type]


def test_identical_figures_are_the_same() -> None:
    """No noise at all, no change at all."""
    assert compare([5.0] * 5, [5.0] * 5, "higher") == "same"


def test_a_certain_change_of_two_percent_is_the_same() -> None:
    """Below `LEAST_CHANGE` a change is not worth a verdict, however sure it is."""
    old = [100, 100.1, 100.2, 100.3, 100.4]
    assert compare(old, [x * 1.02 for x in old], "higher") == "same"


def test_overlapping_noise_cannot_be_told() -> None:
    """Runs that scatter by half say nothing about a change of a tenth."""
    assert compare([50, 150, 70, 130, 100], [60, 160, 80, 140, 110], "higher") == "cannot tell"


def samples(
    seed: int, runs: int, factor: float, draw: Callable[[random.Random], float]
) -> tuple[list[float], list[float]]:
    """Two samples of the same distribution, the second times *factor*."""
    rng = random.Random(seed)  # noqa: S311
    return [draw(rng) for _ in range(runs)], [factor * draw(rng) for _ in range(runs)]


def quiet(rng: random.Random) -> float:
    """100 with noise of 2 %."""
    return rng.gauss(100, 2)


def noisy(rng: random.Random) -> float:
    """100 with noise of 15 %: half the runs differ by more than the least change."""
    return abs(rng.gauss(100, 15)) + 1


def spiky(rng: random.Random) -> float:
    """100 with noise of 3 %, one run in six hit by something that takes up to as long again."""
    return rng.gauss(100, 3) + (rng.uniform(0, 100) if rng.random() < 1 / 6 else 0)


@pytest.mark.parametrize("runs", [5, 10, 20])
@pytest.mark.parametrize("draw", [quiet, noisy, spiky])
def test_noise_alone_is_seldom_called_a_change(draw: Callable[[random.Random], float], runs: int) -> None:
    """Two samples of one distribution: a change in at most 5 % of 400 comparisons, and 3 sigma of luck."""
    verdicts = Counter(compare(*samples(seed, runs, 1.0, draw), "higher") for seed in range(400))
    assert verdicts["faster"] + verdicts["slower"] <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_of_ten_percent_is_found(seed: int) -> None:
    """Five runs each with noise of 2 % suffice, both ways."""
    assert compare(*samples(seed, 5, 1.1, quiet), "higher") == "faster"
    assert compare(*samples(seed, 5, 1 / 1.1, quiet), "higher") == "slower"


def test_quiet_samples_of_one_distribution_are_mostly_the_same() -> None:
    """With noise of 2 % and ten runs each, "same" is the answer nine times in ten at least."""
    verdicts = Counter(compare(*samples(seed, 10, 1.0, quiet), "lower") for seed in range(200))
    assert verdicts["same"] >= 180


@given(SAMPLES, SAMPLES, st.integers(1, 1000), st.randoms())
def test_compare_minds_neither_order_nor_unit(
    old: list[float], new: list[float], factor: int, rng: random.Random
) -> None:
    """Runs may come in any order, and milliseconds say what seconds say: 2^k is exact in floats."""
    scale = float(Fraction(2) ** (factor % 20))
    shuffled = rng.sample(old, len(old))
    scaled = compare([x * scale for x in shuffled], [x * scale for x in new], "lower")
    assert scaled == compare(old, new, "lower")


@given(SAMPLES, SAMPLES)
def test_the_estimate_lies_in_its_interval(old: list[float], new: list[float]) -> None:
    """low <= estimate <= high, and swapped samples are never both faster, or both slower."""
    found = change(old, new)
    if found is not None:
        assert found.low <= found.estimate <= found.high
    there, back = compare(old, new, "higher"), compare(new, old, "higher")
    assert {there, back} not in ({"faster"}, {"slower"})
