"""How sure a number is: intervals of runs, ratios of pairs of runs, trends.

Knows nothing about what was sampled; imports no numpy, as the report needs it. The law: an interval
that the samples cannot support is None, never a narrow guess. All intervals are of 95 %.
"""

import math
from collections.abc import Sequence
from itertools import combinations, permutations
from statistics import NormalDist, fmean, median, stdev

from llmopt.quality.student import upper_quantile
from llmopt.results.schema import Interval

CONFIDENCE = 0.95
MIN_RUNS = 3  # fewer runs say nothing about the spread between runs that one could rely on
MIN_TREND = 5  # fewer values have no trend with p < 0.05: 2 / 4! is 0.083
_EXACT_TREND = 7  # up to so many values all orders are counted


def runs_interval(values: Sequence[float]) -> Interval | None:
    """The interval of the mean of runs, by Student's t; None for fewer than three."""
    if len(values) < MIN_RUNS:
        return None
    half = half_width(values)
    return fmean(values) - half, fmean(values) + half


def half_width(values: Sequence[float]) -> float:
    """Half the width of the interval of the mean of at least two values."""
    return _quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def relative_half_width(values: Sequence[float]) -> float:
    """Half the width of the interval of the mean / the mean; infinite for fewer than three runs.

    This is what `--until-ci 3%` bounds.
    """
    if len(values) < MIN_RUNS:
        return math.inf
    half, mean = half_width(values), abs(fmean(values))
    return half / mean if mean > 0 else (0.0 if half == 0 else math.inf)


def runs_needed(values: Sequence[float], relative: float) -> int | None:
    """How many runs in all would settle the mean if they scatter as these do; None: too few to say.

    The smallest n >= 3 with t(n - 1) s / sqrt(n) <= `relative` * mean.
    """
    if len(values) < MIN_RUNS or fmean(values) == 0:
        return None
    spread = stdev(values) / abs(fmean(values)) / relative
    low, high = MIN_RUNS - 1, MIN_RUNS
    while _quantile(high - 1) * spread > math.sqrt(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        settled = _quantile(middle - 1) * spread <= math.sqrt(middle)
        low, high = (low, middle) if settled else (middle, high)
    return high


def paired_ratio(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, Interval | None]:
    """The median of the ratios of pairs, and the interval of their geometric mean.

    Runs that followed each other share the state of the machine, which cancels in their ratio. Both
    sequences are of positive values and have one length, at least 1.
    """
    ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
    interval = runs_interval([math.log(ratio) for ratio in ratios])
    if interval is None:
        return median(ratios), None
    return median(ratios), (math.exp(interval[0]), math.exp(interval[1]))


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Change from one value to the next (Theil-Sen slope), and the p-value of there being a trend.

    Two-sided test of Mann and Kendall: exact over all orders for up to seven values, else by the
    normal approximation with continuity correction; ties are not corrected for, which makes it
    cautious. At least two values.
    """
    assert len(values) >= 2, "a trend needs two values"
    pairs = list(combinations(range(len(values)), 2))
    slope = median((values[j] - values[i]) / (j - i) for i, j in pairs)
    score = _concordance(values)
    size = len(values)
    if size <= _EXACT_TREND:
        orders = [abs(_concordance(order)) for order in permutations(range(size))]
        return slope, sum(other >= abs(score) for other in orders) / len(orders)
    variance = size * (size - 1) * (2 * size + 5) / 18
    z = max(0, abs(score) - 1) / math.sqrt(variance)
    return slope, 2 * (1 - NormalDist().cdf(z))


def _quantile(degrees: int) -> float:
    """How many standard errors an interval reaches to each side."""
    return upper_quantile((1 - CONFIDENCE) / 2, degrees)


def _concordance(values: Sequence[float]) -> int:
    """Pairs that rise less pairs that fall."""
    return sum((b > a) - (b < a) for a, b in combinations(values, 2))
