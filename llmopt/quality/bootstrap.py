"""Confidence intervals of token averages, from a bootstrap over whole windows.

Tokens of one window depend on each other, so that intervals from tokens drawn one by one are too
narrow: the window is what is drawn again (a block bootstrap; Künsch 1989). Knows nothing about
models or text. The law it keeps: the same numbers and seed give the same interval.
"""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from llmopt.quality.student import upper_quantile
from llmopt.results.schema import Interval

CHUNK_DRAWS = 1 << 20  # windows drawn at a time: bounds the memory whatever the window count

FloatArray = npt.NDArray[np.float64]


def ratio_interval(
    numerators: FloatArray,
    denominators: FloatArray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of sum(numerators) / sum(denominators) over windows.

    numerators, denominators: [W], one pair per window, W >= 2. With sums of a token statistic
    above and token counts below, this is the interval of its mean over tokens; a paired
    difference per token goes in as one statistic.

    Expanded percentile interval (Hesterberg, "What Teachers Should Know About the Bootstrap",
    2015, section 4.3): plain percentiles of few windows are too narrow by sqrt((W-1)/W) and by
    the normal quantile standing in for Student's, so the percentiles are moved outwards to match.

    Coverage of nominal 95 % intervals in simulations of token KL divergences, heavy-tailed and
    correlated, with a coefficient of variation of windows of 0.26 and a skewness of 1.1 (SmolLM2 in
    bfloat16, windows of 512: 0.11 and 0.2): 92.9 % of 8 windows, 94.0 of 16, 94.7 of 32, 94.3 of
    64. Of windows far more skewed (3.5): 90 % of 8, 91 to 93 % of 16 to 64.
    """
    num_windows = len(numerators)
    assert num_windows >= 2, "one window has no spread"
    assert len(denominators) == num_windows, "one denominator per numerator"
    ratios = _resample(numerators, denominators, num_resamples, np.random.default_rng(seed))
    tail = _expanded_tail((1 - confidence) / 2, num_windows)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def _resample(
    numerators: FloatArray,
    denominators: FloatArray,
    num_resamples: int,
    generator: np.random.Generator,
) -> FloatArray:
    """Ratios of `num_resamples` draws of W windows with replacement -> [num_resamples]."""
    num_windows = len(numerators)
    rows = max(1, CHUNK_DRAWS // num_windows)
    ratios = np.empty(num_resamples)
    for start in range(0, num_resamples, rows):
        stop = min(start + rows, num_resamples)
        drawn = generator.integers(num_windows, size=(stop - start, num_windows))
        ratios[start:stop] = numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)
    return ratios


def _expanded_tail(tail: float, num_windows: int) -> float:
    """Tail probability whose percentile is as wide as Student's interval of the same windows."""
    normal = NormalDist()
    quantile = upper_quantile(tail, num_windows - 1)
    return normal.cdf(-math.sqrt(num_windows / (num_windows - 1)) * quantile)
