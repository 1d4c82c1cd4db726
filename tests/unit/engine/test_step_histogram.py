"""What the engine counts of its steps, against the steps themselves, token by token."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.engine import Engine
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.request import Request
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt.engine.step_histogram import StepHistogram, num_attended, rounded

FULL = (LayerGroup((0, 1, 2)),)


def item(start: int, num_new: int, *, samples: bool = True, drafts: int = 0) -> ScheduledRequest:
    request = Request("r", [5] * (start + num_new), 1, SamplingParams(), 9, 0)
    return ScheduledRequest(request, start, num_new, samples, (7,) * drafts)


def seen_by(position: int, window: int | None, num_sinks: int) -> set[int]:
    """The positions that a token sees, by the definition of windows and sinks."""
    if window is None:
        return set(range(position + 1))
    recent = range(max(0, position - window + 1), position + 1)
    return set(recent) | set(range(min(num_sinks, position + 1)))


@given(
    start=st.integers(0, 40),
    num_new=st.integers(1, 20),
    window=st.none() | st.integers(1, 30),
    num_sinks=st.integers(0, 4),
)
def test_pairs_and_slots_are_those_that_are_seen(start, num_new, window, num_sinks):
    num_sinks = num_sinks if window is not None else 0
    groups = (LayerGroup((0, 1)), LayerGroup((2,), window, num_sinks))
    histogram = StepHistogram(groups)
    histogram.add(SchedulerOutput((item(start, num_new),)), 0.5, 0.25)
    ((key, bucket),) = histogram.buckets.items()
    pairs, slots = 0, 0
    for group in groups:
        seen = [seen_by(p, group.window, group.num_sinks) for p in range(start, start + num_new)]
        pairs += len(group.layers) * sum(map(len, seen))
        slots += len(group.layers) * len(set().union(*seen))
    assert bucket.num_attended == pytest.approx(pairs / 3)
    assert bucket.num_seen_slots == slots
    assert key == (rounded(num_new), 1)


def test_steps_of_one_size_are_summed():
    histogram = StepHistogram(FULL)
    for start in (10, 11):
        step = SchedulerOutput((item(start, 1), item(20, 3, drafts=2)))
        histogram.add(step, 0.5, 0.125)
    histogram.add(SchedulerOutput((item(0, 40, samples=False),)), 2.0, 0.0)
    decode, prefill = histogram.buckets[4, 2], histogram.buckets[40, 1]
    assert (decode.num_steps, decode.num_requests, decode.num_tokens) == (2, 4, 8)
    assert (decode.num_rows, decode.num_head_steps) == (2 * (1 + 3), 2)
    assert (decode.forward_s, decode.sample_s) == (1.0, 0.25)
    assert decode.num_seen_slots == 3 * (11 + 12 + 2 * 23)
    assert (prefill.num_rows, prefill.num_head_steps, prefill.forward_s) == (0, 0, 2.0)
    assert prefill.num_attended == 40 * 41 / 2


@given(st.integers(0, 1 << 20))
def test_rounding_takes_an_eighth_at_most(number):
    assert rounded(number) <= number < rounded(number) + max(1, number / 8)
    assert rounded(rounded(number)) == rounded(number)
    if number < 16:
        assert rounded(number) == number


def test_few_buckets_hold_all_sizes():
    assert len({rounded(number) for number in range(8193)}) < 100


def test_no_window_is_a_window_that_holds_all():
    assert num_attended(9, None) == num_attended(9, 9) == 45
    assert num_attended(9, 4) == 1 + 2 + 3 + 4 * 6


def test_an_engine_counts_every_token_once(
    make_engine: Callable[..., Engine], run: Any, prompts: list[list[int]]
) -> None:
    engine = make_engine(max_num_batched_tokens=16)
    run(engine, prompts, SamplingParams(max_tokens=7, ignore_eos=True))
    buckets = engine.runner.steps.buckets.values()
    assert sum(bucket.num_steps for bucket in buckets) == engine.stats.num_steps
    assert sum(bucket.num_tokens for bucket in buckets) == engine.stats.num_scheduled_tokens
    assert sum(bucket.num_rows for bucket in buckets) == 7 * len(prompts)
    pairs = sum(num_attended(len(prompt) + 6, None) for prompt in prompts)
    assert sum(bucket.num_attended for bucket in buckets) == pytest.approx(pairs)
    assert sum(b.forward_s for b in buckets) == pytest.approx(engine.times.forward_s)
    assert sum(b.sample_s for b in buckets) == pytest.approx(engine.times.sample_s)
