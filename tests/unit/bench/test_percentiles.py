import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.percentiles import (
    min_samples,
    percentile,
    percentile_interval,
    summarize_runs,
    summarize_samples,
)

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


@pytest.mark.parametrize(("percent", "size"), [(50, 6), (50, 25), (90, 40), (99, 400), (50, 3000)])
def test_the_interval_of_a_percentile_covers_it(percent, size):
    draws = np.sort(np.random.default_rng(1).random((1000, size)), axis=1)
    hits = 0
    for row in draws:
        low, high = percentile_interval(row, percent)
        hits += low <= percent / 100 <= high
    assert 0.935 <= hits / 1000 <= 0.995


@given(samples=st.lists(st.floats(0, 1e6), min_size=6, max_size=80))
def test_the_interval_encloses_the_median_and_widens_with_dependence(samples):
    ordered = sorted(samples)
    low, high = percentile_interval(ordered, 50)
    assert low <= percentile(ordered, 50) <= high
    fewer = percentile_interval(ordered, 50, len(ordered) / 2)
    if fewer is not None:
        assert fewer[0] <= low
        assert high <= fewer[1]


@pytest.mark.parametrize(("percent", "needed"), [(50, 6), (95, 59), (99, 299)])
def test_too_few_samples_have_no_interval(percent, needed):
    samples = list(range(needed))
    assert percentile_interval(samples[1:], percent) is None
    assert percentile_interval(samples, percent) is not None
    assert percentile_interval(samples, percent, n_eff=needed - 1) is None


def test_the_last_tail_is_shown_only_with_samples_enough():
    rng = np.random.default_rng(0)
    enough = min_samples(99.9)
    assert enough == 2995
    assert summarize_samples(rng.random(enough)).p999 is not None
    assert summarize_samples(rng.random(enough - 1)).p999 is None
    assert summarize_runs([[1.0, 2.0] * enough]).p999 is not None
    slow = np.repeat(rng.random(enough // 4), 8)  # eight of a kind: worth an eighth
    assert summarize_runs([slow]).p999 is None


def test_runs_are_independent_of_each_other():
    run = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # a trend: worth less than six
    once, twice = summarize_runs([run]), summarize_runs([run, run])
    assert once.n_eff < 6
    assert twice.n_eff == pytest.approx(2 * once.n_eff)
    assert twice.n == 12
    assert summarize_runs([]) is summarize_runs([[]]) is None
