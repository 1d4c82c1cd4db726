"""Order statistics of samples, and how many samples they need.

Knows nothing about what was sampled.
The law: no percentile is shown as sound that has no confidence interval.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from statistics import NormalDist, fmean

from llmopt.bench.resampling import effective_samples
from llmopt.bench.statistics import CONFIDENCE
from llmopt.results.schema import Interval, Percentiles

_EXACT_SAMPLES = 2000  # above, the normal approximation of the binomial distribution is as good


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of ascending samples, by linear interpolation (numpy's default, R type 7)."""
    assert ordered, "a percentile needs a sample"
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize_samples(samples: Iterable[float]) -> Percentiles | None:
    """Percentiles and mean of independent samples; None without samples."""
    values = list(samples)
    return _summarize(values, float(len(values)))


def summarize_runs(runs: Iterable[Sequence[float]]) -> Percentiles | None:
    """Percentiles and mean of the pooled samples of runs, each in the order of time.

    Samples of one run depend on each other; those of different runs do not.
    """
    kept = [list(run) for run in runs]
    pooled = [value for run in kept for value in run]
    return _summarize(pooled, sum(effective_samples(run) for run in kept))


def _summarize(samples: list[float], n_eff: float) -> Percentiles | None:
    ordered = sorted(samples)
    if not ordered:
        return None
    return Percentiles(
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        mean=fmean(ordered),
        n=len(ordered),
        p999=percentile(ordered, 99.9) if n_eff >= min_samples(99.9) else None,
        n_eff=n_eff,
        p50_ci=percentile_interval(ordered, 50, n_eff),
        p95_ci=percentile_interval(ordered, 95, n_eff),
        p99_ci=percentile_interval(ordered, 99, n_eff),
    )


def percentile_interval(
    ordered: Sequence[float], percent: float, n_eff: float | None = None
) -> Interval | None:
    """The 95 % interval of a percentile of ascending samples, between two of them.

    The number of samples below the quantile q is binomial, so the samples of two ranks enclose it
    with a probability that no distribution has to be assumed for (David & Nagaraja, Order
    Statistics, section 7.1). Dependent samples count as the `n_eff` independent ones that they are
    worth, whose ranks are stretched. None when there are too few.
    """
    size = len(ordered) if n_eff is None else min(len(ordered), int(n_eff))
    q = percent / 100
    if size < 1 or q**size + (1 - q) ** size > 1 - CONFIDENCE:
        return None
    low, high = _ranks(size, q)
    stretch = len(ordered) / size
    first = max(0, math.floor(low * stretch))
    last = min(len(ordered) - 1, math.ceil((high + 1) * stretch) - 1)
    return ordered[first], ordered[last]


def _ranks(size: int, q: float) -> tuple[int, int]:
    """The closest ranks, from 0, that enclose the quantile with 95 %: equal tails, if possible."""
    tail = (1 - CONFIDENCE) / 2
    if size > _EXACT_SAMPLES:
        half = NormalDist().inv_cdf(1 - tail) * math.sqrt(size * q * (1 - q))
        return max(0, math.floor(size * q - half)), min(size - 1, math.ceil(size * q + half))
    # With B samples below the quantile, ranks i and j enclose it when i < B <= j.
    below = _binomial_cdf(size, q)
    low = max((k for k in range(size) if below[k] <= tail), default=0)
    high = next((k for k in range(size) if below[k] >= 1 - tail), size - 1)
    while below[high] - below[low] < CONFIDENCE:  # a tail was cut off by the ends
        if high < size - 1:
            high += 1
        else:
            low -= 1
    return low, high


def _binomial_cdf(size: int, q: float) -> list[float]:
    """P(B <= k) for k = 0 .. size, B of `size` trials of probability q; sums in log space."""
    log_q, log_p = math.log(q), math.log1p(-q)
    terms = [
        math.exp(
            math.lgamma(size + 1)
            - math.lgamma(k + 1)
            - math.lgamma(size - k + 1)
            + k * log_q
            + (size - k) * log_p
        )
        for k in range(size + 1)
    ]
    total, sums = 0.0, []
    for term in terms:
        total += term
        sums.append(total)
    return sums


@cache
def min_samples(percent: float, confidence: float = CONFIDENCE) -> int:
    """Fewest independent samples whose range is a confidence interval of the percentile.

    The range misses the quantile q when all n samples lie on one side of it: probability q^n +
    (1-q)^n (order-statistic interval; David & Nagaraja, Order Statistics, section 7.1). 6 for the
    median, 299 for p99.
    """
    q = percent / 100
    return next(n for n in count(1) if q**n + (1 - q) ** n <= 1 - confidence)
