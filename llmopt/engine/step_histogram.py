"""The steps of an engine by size: how many, of how much work, how long the model took.

Knows nothing about bandwidths, FLOPs or what becomes of the numbers.
Law: sums only grow; steps of one bucket differ in size by an eighth at most, so that what bounds a
step of the mean size bounds nearly all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.scheduler import SchedulerOutput


@dataclass(slots=True)
class StepBucket:
    """Sums over the steps of about one size.

    `num_rows`: hidden states that went through the lm_head, in `num_head_steps` of the steps.
    `num_attended`: pairs of a token and one that it sees, mean over the layers. `num_seen_slots`:
    cache slots (a token in a layer) that are seen by a request of the step, as often as by
    requests. `forward_s` and `sample_s`: see `StageTimes`.
    """

    num_steps: int = 0
    num_requests: int = 0
    num_tokens: int = 0
    num_rows: int = 0
    num_head_steps: int = 0
    num_attended: float = 0.0
    num_seen_slots: int = 0
    forward_s: float = 0.0
    sample_s: float = 0.0


class StepHistogram:
    """Buckets by the rounded numbers of tokens and requests; `groups` are the model's layers."""

    def __init__(self, groups: Sequence[LayerGroup]) -> None:
        self.buckets: dict[tuple[int, int], StepBucket] = {}
        self._num_layers = sum(len(group.layers) for group in groups)
        self._groups = tuple(
            (len(g.layers), None if g.window is None else g.window + g.num_sinks) for g in groups
        )  # a token sees the last of its window, and the sinks

    def add(self, output: SchedulerOutput, forward_s: float, sample_s: float) -> None:
        """Count a step."""
        scheduled = output.scheduled
        num_tokens = output.num_scheduled_tokens
        key = (rounded(num_tokens), rounded(len(scheduled)))
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = StepBucket()
        num_rows = sum(1 + len(item.draft_token_ids) for item in scheduled if item.samples)
        bucket.num_steps += 1
        bucket.num_requests += len(scheduled)
        bucket.num_tokens += num_tokens
        bucket.num_rows += num_rows
        bucket.num_head_steps += num_rows > 0
        bucket.forward_s += forward_s
        bucket.sample_s += sample_s
        spans = [(item.start, item.num_scheduled_tokens) for item in scheduled]
        for num_layers, window in self._groups:
            pairs, seen = _seen(spans, window)
            bucket.num_attended += pairs * num_layers / self._num_layers
            bucket.num_seen_slots += seen * num_layers


def rounded(number: int) -> int:
    """The four leading binary digits of a number: exact below 16, an eighth too small at most."""
    shift = max(0, number.bit_length() - 4)
    return number >> shift << shift


def _seen(spans: Sequence[tuple[int, int]], window: int | None) -> tuple[int, int]:
    """Pairs of a new token and one that it sees, and slots that each request sees; `spans` are the
    computed and the new tokens of each.
    """
    pairs = seen = 0
    if window is None:  # nearly always, and this is done for every request of every step
        for start, num_new in spans:
            pairs += num_new * (2 * start + num_new + 1) // 2
            seen += start + num_new
        return pairs, seen
    for start, num_new in spans:
        pairs += num_attended(start + num_new, window) - num_attended(start, window)
        seen += min(start + num_new, window + num_new - 1)
    return pairs, seen


def num_attended(num_tokens: int, window: int | None) -> int:
    """Tokens that the first `num_tokens` of a sequence see in all: token i (from 1) sees i, itself
    among them, and no more than `window`.
    """
    growing = num_tokens if window is None else min(num_tokens, window)
    return growing * (growing + 1) // 2 + (num_tokens - growing) * growing
