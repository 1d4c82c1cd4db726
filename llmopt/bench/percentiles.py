"""Order statistics of samples, and how many samples they need.

Knows nothing about what was sampled.
The law: no percentile is shown as sound that has no confidence interval.
"""

from collections.abc import Iterable, Sequence
from itertools import count
from statistics import fmean

from llmopt.results.schema import Percentiles


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of ascending samples, by linear interpolation (numpy's default, R type 7)."""
    assert ordered, "a percentile needs a sample"
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize_samples(samples: Iterable[float]) -> Percentiles | None:
    """Percentiles and mean; None without samples."""
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
    )


def min_samples(percent: float, confidence: float = 0.95) -> int:
    """Fewest independent samples whose range is a confidence interval of the percentile.

    The range misses the quantile q when all n samples lie on one side of it: probability q^n +
    (1-q)^n (order-statistic interval; David & Nagaraja, Order Statistics, section 7.1). 6 for the
    median, 299 for p99.
    """
    q = percent / 100
    return next(n for n in count(1) if q**n + (1 - q) ** n <= 1 - confidence)
