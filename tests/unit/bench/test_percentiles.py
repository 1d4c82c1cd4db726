import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.percentiles import min_samples, percentile, summarize_samples

SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(samples=SAMPLES, percent=st.sampled_from([0, 1, 50, 90, 95, 99, 100]))
def test_percentile_equals_numpy(samples, percent):
    expected = np.percentile(samples, percent)
    assert percentile(sorted(samples), percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(samples=SAMPLES)
def test_summary_is_ordered_and_does_not_depend_on_order(samples):
    summary = summarize_samples(samples)
    assert summary == summarize_samples(reversed(samples))
    assert min(samples) <= summary.p50 <= summary.p90 <= summary.p95 <= summary.p99 <= max(samples)
    assert summary.mean == pytest.approx(np.mean(samples))
    assert summary.n == len(samples)


def test_no_samples_give_no_summary():
    assert summarize_samples([]) is None


@pytest.mark.parametrize(("percent", "needed"), [(50, 6), (90, 29), (95, 59), (99, 299)])
def test_min_samples(percent, needed):
    assert min_samples(percent) == needed


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_range_of_min_samples_covers_the_percentile(percent):
    draws = np.random.default_rng(0).random((20_000, min_samples(percent)))
    covered = (draws.min(axis=1) <= percent / 100) & (draws.max(axis=1) >= percent / 100)
    assert covered.mean() == pytest.approx(0.96, abs=0.015)  # at least 0.95
    fewer = draws[:, :-1]
    covered = (fewer.min(axis=1) <= percent / 100) & (fewer.max(axis=1) >= percent / 100)
    assert covered.mean() < 0.953
