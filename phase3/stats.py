"""Statistics of samples: summaries, the slope of a series, the change between two samples."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]
Verdict = Literal["same", "faster", "slower", "cannot tell"]

CONFIDENCE = 0.95
# A change below this is not worth a verdict: the harness calls ITLs that agree within 5 % settled
# (`stable`), so it cannot claim to see less between two runs.
LEAST_CHANGE = 0.05
# Above this many pairs the normal approximation of Mann-Whitney's U is exact enough, and quicker.
EXACT_PAIRS = 2500
# A series of at least two points for each is cut into this many groups (`slope`).
GROUPS = 8


@dataclass(frozen=True)
class Summary:
    """What a table shows of a sample of *n* values, in the unit of the values."""

    median: float
    p90: float
    p99: float
    min: float
    max: float
    n: int


@dataclass(frozen=True)
class Slope:
    """Growth of y per unit of x, with its 95 % confidence interval, from *n* points."""

    per_x: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Change:
    """How much larger the new sample is than the old: 0.1 is 10 %; with its confidence interval."""

    estimate: float
    low: float
    high: float


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number of values, the mean of the middle two."""
    return percentile(values, 50)


def percentile(values: Sequence[float], p: float) -> float:
    """The value that *p* percent of the sample do not exceed, with linear interpolation.

    Value number ``(n - 1) * p / 100`` of the sorted sample, counted from 0; a fraction lies between
    its neighbours (type 7 of Hyndman and Fan 1996; also the default of numpy and R).
    """
    if not 0 <= p <= 100:
        raise ValueError(f"percentile: expected 0 to 100, got {p}")
    ordered = sorted(_sample(values))
    position = (len(ordered) - 1) * p / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summary(values: Sequence[float]) -> Summary:
    """Median, tail and extremes of *values*, which are at least one."""
    p50, p90, p99 = (percentile(values, p) for p in (50, 90, 99))
    return Summary(p50, p90, p99, float(min(values)), float(max(values)), len(values))


def stable(values: Sequence[float], within: float = 0.05, last: int = 3) -> bool:
    """Whether warm-up is over: the *last* values span at most *within* of their median."""
    if last < 2:
        raise ValueError(f"stable: expected at least 2 values to compare, got last={last}")
    if len(values) < last:
        return False
    recent = values[-last:]
    return max(recent) - min(recent) <= within * median(recent)


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope:
    """Least-squares slope of *ys* over *xs*, which are in the order of time.

    Neighbouring readings of a machine's memory resemble each other; an interval that takes them for
    independent accuses clean machines. So the interval of a longer series comes from the means of eight
    stretches of it, which hardly do (the batch means of simulation studies), with 6 degrees of freedom.
    A single step within the series still tilts the line: look at the plot before you look for a leak.

    Raises:
        ValueError: fewer than 3 points, lengths differ, or all *xs* are equal.
    """
    xs, ys = _sample(xs), _sample(ys)
    n = len(xs)
    if n != len(ys) or n < 3:
        raise ValueError(f"slope: expected as many xs as ys, and at least 3; got {n} and {len(ys)}")
    per_x, error = _least_squares(xs, ys)
    groups = n
    if n >= 2 * GROUPS:
        groups = GROUPS
        _, error = _least_squares(_group_means(xs), _group_means(ys))
    half = t_quantile((1 + CONFIDENCE) / 2, groups - 2) * error
    return Slope(per_x, per_x - half, per_x + half, n)


def compare(old: Sequence[float], new: Sequence[float], better: Better) -> Verdict:
    """Whether *new* is faster than *old*, slower, the same, or too noisy to say.

    A verdict of change needs both: an interval that excludes "no change", so that noise alone gives
    it in at most 5 % of comparisons, and an estimate of at least `LEAST_CHANGE`, so that a difference
    that is certain but of no use to anybody is not reported. "same" is a finding as well: the whole
    interval is nearer to zero than `LEAST_CHANGE`. It speaks of these samples; what differs between
    two sessions, such as temperature, is for the environment record.

    Args:
        better: "higher" for rates, "lower" for times.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better: expected 'higher' or 'lower', got {better!r}")
    found = change(old, new)
    if found is None:
        return "cannot tell"
    if found.low > -LEAST_CHANGE and found.high < LEAST_CHANGE:
        return "same"
    if found.low <= 0 <= found.high or abs(found.estimate) < LEAST_CHANGE:
        return "cannot tell"
    return "faster" if (found.estimate > 0) == (better == "higher") else "slower"


def change(old: Sequence[float], new: Sequence[float]) -> Change | None:
    """How much *new* differs from *old*, as a ratio; None if the samples are too small to say.

    The Hodges-Lehmann estimate: the median of all ratios new / old, and the interval that belongs to
    the Mann-Whitney test. Timings have long tails and a run may be hit by something else, so ranks are
    used, not means; they assume no distribution, and five runs against five suffice. Values that are
    not above zero have no ratio: None.
    """
    old, new = _sample(old), _sample(new)
    if min(*old, *new) <= 0:
        return None
    tail = _tail_ranks(len(old), len(new))
    if tail == 0:
        return None
    ratios = sorted(b / a - 1 for a in old for b in new)
    return Change(median(ratios), ratios[tail - 1], ratios[-tail])


def t_quantile(p: float, degrees: int) -> float:
    """Student's t that is not exceeded with probability *p*, 0.5 to 1, at *degrees* of freedom.

    Bisects over the angle atan(t / sqrt(degrees)), which unlike t has an upper bound.
    """
    if not 0.5 <= p < 1 or degrees < 1:
        raise ValueError(f"t_quantile: expected 0.5 <= p < 1 and degrees >= 1, got {p} and {degrees}")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _t_within(middle, degrees) < 2 * p - 1:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _t_within(angle: float, degrees: int) -> float:
    """P(-t < T < t), t being sqrt(degrees) tan(angle): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _least_squares(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """The slope, and its standard error when the residuals are independent."""
    x_mean, y_mean = statistics.fmean(xs), statistics.fmean(ys)
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    if spread == 0:
        raise ValueError("slope: all xs are equal")
    pairs = [(x - x_mean, y - y_mean) for x, y in zip(xs, ys, strict=True)]
    per_x = math.fsum(x * y for x, y in pairs) / spread
    squares = math.fsum((y - per_x * x) ** 2 for x, y in pairs)
    return per_x, math.sqrt(squares / (len(pairs) - 2) / spread)


def _group_means(values: Sequence[float]) -> list[float]:
    """Means of `GROUPS` stretches, as equal in length as they can be."""
    ends = [i * len(values) // GROUPS for i in range(GROUPS + 1)]
    return [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(ends)]


def _tail_ranks(m: int, n: int) -> int:
    """How many of the *m* x *n* ratios lie beyond each end of the interval, its end counted in.

    The largest c with P(U < c) at most 2.5 %, U being Mann-Whitney's; 0 if the samples are too small.
    """
    tail = (1 - CONFIDENCE) / 2
    if m * n > EXACT_PAIRS:
        z = statistics.NormalDist().inv_cdf(1 - tail)
        return max(0, math.floor(m * n / 2 - z * math.sqrt(m * n * (m + n + 1) / 12)))
    allowed, seen, c = tail * math.comb(m + n, m), 0, 0
    for count in _rank_sum_counts(m, n):
        seen += count
        if seen > allowed:
            break
        c += 1
    return c


def _rank_sum_counts(m: int, n: int) -> list[int]:
    """How many orders of *m* and *n* values give U = 0, 1, ..., m n: the Gaussian binomial's coefficients.

    The product over i = 1..m of (1 - q^(n+i)) / (1 - q^i), as power series.
    """
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    return counts


def _sample(values: Sequence[float]) -> list[float]:
    if not values:
        raise ValueError("expected at least one value, got none")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"expected finite numbers, got {list(values)}")
    return [float(value) for value in values]
