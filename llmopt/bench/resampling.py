"""Samples that depend on each other: what they are worth, and intervals from blocks of them.

Knows nothing about what was sampled. The law: the same samples and seed give the same interval, and
an interval that the samples cannot support is None. All intervals are of 95 %.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmopt.bench.statistics import CONFIDENCE
from llmopt.results.schema import Interval

NUM_RESAMPLES = 1000
MIN_BLOCKS = 6  # as many independent samples as a median needs


def effective_samples(samples: Sequence[float]) -> float:
    """Independent samples that would be worth as much as these, which are in the order of time.

    n / (1 + 2 sum of the autocorrelations), summed in pairs for as long as a pair is positive
    (Geyer 1992, initial positive sequence). Between 1 and n.
    """
    size = len(samples)
    if size < 4:
        return float(size)
    centred = np.asarray(samples, dtype=np.float64) - np.mean(samples)
    padded = 1 << (2 * size - 1).bit_length()
    spectrum = np.fft.rfft(centred, padded)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), padded)[:size]
    if covariance[0] <= 1e-12 * max(1.0, float(np.square(samples).sum())):
        return float(size)  # all the same
    correlation = covariance / covariance[0]
    pairs = correlation[0 : size - 1 : 2] + correlation[1:size:2]
    negative = np.flatnonzero(pairs <= 0)
    kept = pairs[: negative[0]] if negative.size else pairs
    time = max(1.0, 2 * float(kept.sum()) - 1)
    return max(1.0, size / time)


def block_bootstrap(
    samples: Sequence[float],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval | None:
    """The percentile interval of a statistic of dependent samples, in the order of time.

    Circular blocks (Politis & Romano 1992) of as many samples as are worth one independent sample,
    but at least n^(1/3). `statistic` maps [resamples, n] to [resamples]. None when there are not
    even six blocks.
    """
    values = np.asarray(samples, dtype=np.float64)
    size = len(values)
    if size == 0:
        return None
    block = max(round(size ** (1 / 3)), math.ceil(size / effective_samples(samples)))
    num_blocks = -(-size // block)
    if num_blocks < MIN_BLOCKS:
        return None
    starts = np.random.default_rng(seed).integers(0, size, (num_resamples, num_blocks, 1))
    places = (starts + np.arange(block)).reshape(num_resamples, -1)[:, :size] % size
    found = statistic(values[places])
    low, high = np.percentile(found, [50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE])
    return float(low), float(high)
