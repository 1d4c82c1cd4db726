"""How much worse something became, and how sure that is: tests and intervals of a change.

Knows nothing about metrics or files. A change is on a scale where 0 is none and above 0 is worse.
The laws:

* A change is a regression only if it is both real and large: its one-sided p-value, corrected for
  all comparisons of the gate (Holm 1979), is at most alpha, and its estimate is beyond the
  tolerance. If nothing changed anywhere, the chance that a gate finds any regression is at most
  alpha, however many comparisons it makes.
* It is a pass only if the upper end of its interval is within the tolerance: equivalence is shown,
  not assumed (Schuirmann 1987). Each end is one-sided at alpha. All comparisons must pass for the
  gate to pass, and such an intersection needs no correction (Berger 1982).
* Everything else is inconclusive.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean, stdev

import numpy as np
from numpy.typing import NDArray

from llmopt.quality.student import upper_quantile, upper_tail
from llmopt.results.schema import Interval

ALPHA = 0.05
MIN_VALUES = 3  # fewer say nothing about their scatter that one could rely on
MAX_UNITS = 1000  # so many runs nobody will make
_SPARE_PAIRS = 2  # beyond those that a rank test needs to reject at all
_MAX_DEGREES = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """A change for the worse, and how sure it is.

    interval: both ends are one-sided at 95 %
    p_value: one-sided, of a change at least so bad if there were none
    count: how many units it is from; 0: it is exact, or nothing is known of its scatter
    spread: of one unit, so that the interval shrinks as spread / sqrt(count)
    floor: the standard deviation that more units do not reduce
    missing: how many more units would tell the scatter, where there are too few for that
    """

    value: float
    interval: Interval
    p_value: float
    method: str
    count: int = 0
    spread: float = 0.0
    floor: float = 0.0
    missing: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether chance has no part in it."""
        return self.interval == (self.value, self.value) and self.count == 0


def exact_change(value: float, method: str = "exact") -> Change:
    """A change that is known, such as of a file's size."""
    return Change(value, (value, value), 0.0 if value > 0 else 1.0, method)


def unknown_change(value: float, method: str, missing: int = 0) -> Change:
    """A change whose scatter is not known: it decides nothing.

    missing: how many more units would tell; 0: none
    """
    return Change(value, (-math.inf, math.inf), 1.0, method, missing=missing)


def paired_change(differences: Sequence[float], num_tests: int, noise: float = 0.0) -> Change:
    """The change from at least 3 differences of pairs, worse - before.

    Of two runs that are the same the difference is symmetric about 0, whatever the runs' own
    distribution: so the exact signed-rank test (Wilcoxon 1945) with the interval and the estimate
    that belong to it (Hodges and Lehmann 1963) hold its level, and a run that was slowed down from
    outside moves them little. It needs about log2(num_tests / alpha) pairs; fewer pairs are judged
    by Student's t. `noise`: the standard deviation of a difference as learned before; the result
    is never surer than that allows.
    """
    assert len(differences) >= MIN_VALUES, "too few pairs have no scatter"
    needed = math.ceil(math.log2(num_tests / ALPHA)) + _SPARE_PAIRS
    if len(differences) >= needed:
        return _at_least(_rank_change(differences), noise)
    return _at_least(_mean_change(differences, "Student's t of pairs"), noise)


def unpaired_change(
    before: Sequence[float],
    after: Sequence[float],
    session_noise: float,
    num_sessions: int | None = None,
) -> Change:
    """The change from at least 3 runs on each side that were made apart (Welch 1947).

    session_noise: the standard deviation between sessions of the same thing. The runs of a session
        share it, so that more of them do not reduce it.
    num_sessions: how many it was learned from, at least 2; None: it is taken as known
    """
    assert min(len(before), len(after)) >= MIN_VALUES, "too few runs have no scatter"
    value = fmean(after) - fmean(before)
    parts = [stdev(side) ** 2 / len(side) for side in (before, after)]
    floor = math.sqrt(2) * session_noise
    variance = sum(parts) + floor**2
    if variance == 0:
        return _mean_change([value] * len(after), "Welch's t")
    square = sum(p**2 / (len(s) - 1) for p, s in zip(parts, (before, after), strict=True))
    if num_sessions is not None:
        square += floor**4 / (num_sessions - 1)
    degrees = min(_MAX_DEGREES, int(variance**2 / square)) if square else _MAX_DEGREES
    error = math.sqrt(variance)
    half = upper_quantile(ALPHA, degrees) * error
    count = min(len(before), len(after))
    return Change(
        value,
        (value - half, value + half),
        upper_tail(value / error, degrees),
        "Welch's t of runs made apart",
        count,
        math.sqrt(sum(parts) * count),
        floor,
    )


def normal_change(value: float, error: float, method: str) -> Change:
    """The change from an estimate whose standard error is known from elsewhere."""
    if error == 0:
        return exact_change(value, method)
    half = NormalDist().inv_cdf(1 - ALPHA) * error
    tail = 1 - NormalDist().cdf(value / error)
    return Change(value, (value - half, value + half), tail, method, floor=error)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being several (Holm 1979), in the same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = highest
    return found


def is_regression(change: Change, tolerance: float, adjusted_p: float) -> bool:
    """Whether the change is both real and beyond the tolerance."""
    return change.value > tolerance and adjusted_p <= ALPHA


def is_equivalent(change: Change, tolerance: float) -> bool:
    """Whether the change is surely within the tolerance."""
    return change.interval[1] <= tolerance


def further_units(change: Change, tolerance: float, num_tests: int) -> int | None:
    """How many more units would decide, if they scatter as these do and the estimate stays.

    None: none up to 1,000 would, or that cannot be told. At least so many, where the scatter is not
    known yet.
    """
    if change.count == 0:
        return change.missing or None
    is_worse = change.value > tolerance
    if is_worse and change.spread == change.floor == 0:  # see `_mean_change`
        return max(1, math.ceil(math.log2(num_tests / ALPHA)) - change.count)
    distance = change.value if is_worse else tolerance - change.value
    tail = max(1e-9, ALPHA / num_tests) if is_worse else ALPHA

    def is_decided(count: int) -> bool:
        error = math.hypot(change.spread / math.sqrt(count), change.floor)
        return upper_quantile(tail, count - 1) * error < distance

    if change.count >= MAX_UNITS or not is_decided(MAX_UNITS):
        return None
    low, high = max(MIN_VALUES - 1, change.count), MAX_UNITS  # more units are never less sure
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high - change.count


def _at_least(change: Change, noise: float) -> Change:
    """The change, no surer than units with the standard deviation `noise` allow."""
    error = noise / math.sqrt(change.count)
    if error == 0:
        return change
    least = normal_change(change.value, error, change.method)
    return Change(
        change.value,
        (
            min(change.interval[0], least.interval[0]),
            max(change.interval[1], least.interval[1]),
        ),
        max(change.p_value, least.p_value),
        change.method,
        change.count,
        max(change.spread, noise),
    )


def _mean_change(values: Sequence[float], method: str) -> Change:
    value, spread, count = fmean(values), stdev(values), len(values)
    if spread == 0:
        tail = 0.5**count if value > 0 else 1.0  # as a sign test: constants are no proof
        return Change(value, (value, value), tail, method, count)
    error = spread / math.sqrt(count)
    half = upper_quantile(ALPHA, count - 1) * error
    tail = upper_tail(value / error, count - 1)
    return Change(value, (value - half, value + half), tail, method, count, spread)


def _rank_change(differences: Sequence[float]) -> Change:
    count = len(differences)
    values = np.asarray(differences, dtype=np.float64)
    rows, columns = np.triu_indices(count)
    averages = np.sort((values[rows] + values[columns]) / 2)  # Walsh averages
    tails = _rank_tails(count)
    rejecting = int(np.argmax(tails <= ALPHA))  # positive averages that reject at alpha
    value = float(np.median(averages))
    interval = (float(averages[len(averages) - rejecting]), float(averages[rejecting - 1]))
    half = (interval[1] - interval[0]) / 2
    return Change(
        value,
        interval,
        float(tails[int((averages > 0).sum())]),
        "signed rank of pairs",
        count,
        half * math.sqrt(count) / upper_quantile(ALPHA, count - 1),
    )


@cache
def _rank_tails(count: int) -> NDArray[np.float64]:
    """P(W >= w) for w from 0 to n (n + 1) / 2: W sums the ranks 1 to n, each with probability 1/2.

    It is also the number of positive Walsh averages of n differences that are symmetric about 0.
    """
    chances = np.ones(1)
    for rank in range(1, count + 1):
        shifted = np.concatenate([np.zeros(rank), chances])
        chances = (np.concatenate([chances, np.zeros(rank)]) + shifted) / 2
    return np.minimum(1.0, np.cumsum(chances[::-1])[::-1])
