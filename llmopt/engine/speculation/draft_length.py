"""How many tokens to draft for each request, from measured acceptance and measured times.

Knows nothing about proposers, models or clocks; times are given.
Law: what it chooses changes the speed and never the output.
"""

from collections import deque
from collections.abc import Sequence

PRIOR_ACCEPTANCE = 0.7
_ACCEPTANCE_WEIGHT = 0.1
_FADING = 0.005
_NUM_RECENT = 16


class Acceptance:
    """The chance that the i-th token of a draft is taken if those before it were, for each i.

    Each is a moving average. `fade` goes back towards the prior: what was not tried for long is
    tried again.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        self.rates = list(rates)

    def record(self, num_drafted: int, num_taken: int) -> None:
        """Learn from a draft; tokens behind one that was not taken say nothing."""
        for position in range(min(num_drafted, num_taken + 1)):
            taken = position < num_taken
            self.rates[position] += _ACCEPTANCE_WEIGHT * (taken - self.rates[position])

    def fade(self) -> None:
        """Forget a little: nothing was drafted."""
        self.rates = [rate + _FADING * (PRIOR_ACCEPTANCE - rate) for rate in self.rates]

    def gains(self, limit: int) -> list[float]:
        """The chance that the first 1, 2, ... `limit` tokens are all taken; descending."""
        gains: list[float] = []
        product = 1.0
        for rate in self.rates[:limit]:
            product *= rate
            gains.append(product)
        return gains


class StepTimes:
    """Seconds of a step of the model, as a line over its tokens, and of drafting, per token of
    depth: the longest draft of a step decides how often a draft model runs.

    The line is fitted by least squares to the fastest of the last steps of each size: whatever else
    runs on the machine, or is done for the first time, makes steps slower, and never faster.
    """

    def __init__(self) -> None:
        self._steps: dict[int, deque[float]] = {}
        self._drafts: deque[float] = deque(maxlen=_NUM_RECENT)

    def record_model(self, num_tokens: int, seconds: float) -> None:
        """A step of `num_tokens` tokens."""
        self._steps.setdefault(num_tokens, deque(maxlen=_NUM_RECENT)).append(seconds)

    def record_draft(self, depth: int, seconds: float) -> None:
        """Drafts of which the longest has `depth` tokens."""
        self._drafts.append(seconds / depth)

    @property
    def draft_s(self) -> float:
        """Seconds of drafting per token of depth; 0 before the first draft."""
        return min(self._drafts, default=0.0)

    def fit(self) -> tuple[float, float]:
        """Seconds of a step without tokens, and of each token; neither is negative."""
        if not self._steps:
            return 1.0, 0.0
        points = [(x, min(recent), len(recent)) for x, recent in self._steps.items()]
        total = sum(weight for _, _, weight in points)
        mean_x = sum(weight * x for x, _, weight in points) / total
        mean_y = sum(weight * y for _, y, weight in points) / total
        variance = sum(weight * (x - mean_x) ** 2 for x, _, weight in points)
        if variance == 0:
            return mean_y, 0.0
        covariance = sum(weight * (x - mean_x) * (y - mean_y) for x, y, weight in points)
        slope = min(max(0.0, covariance / variance), mean_y / mean_x)
        return mean_y - slope * mean_x, slope


def choose_lengths(gains: Sequence[Sequence[float]], times: StepTimes) -> list[int]:
    """Draft lengths of requests that decode together, for the most expected tokens per second.

    Args:
        gains: for each request, what `Acceptance.gains` says, as far as it may be drafted.
        times: what steps took so far.
    """
    base_s, token_s = times.fit()
    num_requests = len(gains)
    best_rate = num_requests / max(1e-12, base_s + token_s * num_requests)
    best = [0] * num_requests
    for depth in range(1, max(map(len, gains), default=0) + 1):
        # A token is worth its place if it alone gives more than the mean of all so far.
        kept = [[gain for gain in row[:depth] if gain > best_rate * token_s] for row in gains]
        num_tokens = num_requests + sum(map(len, kept))
        expected = num_requests + sum(map(sum, kept))
        rate = expected / max(1e-12, base_s + token_s * num_tokens + times.draft_s * depth)
        if rate > best_rate:
            best_rate, best = rate, [len(row) for row in kept]
    return best
