import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmopt.bench import statistics
from llmopt.bench.resampling import block_bootstrap, effective_samples

RUNS = st.lists(st.floats(0.1, 1e3), min_size=3, max_size=12)


@given(RUNS)
def test_the_interval_of_runs_equals_scipy(values):
    low, high = statistics.runs_interval(values)
    scale = stats.sem(values)
    if scale > 0:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), scale)
        assert (low, high) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert low <= np.mean(values) * (1 + 1e-12)


def test_two_runs_have_no_interval():
    assert statistics.runs_interval([1.0, 2.0]) is None
    assert statistics.relative_half_width([1.0, 1.0]) == math.inf
    assert statistics.runs_needed([1.0, 1.1], 0.03) is None


@given(RUNS, st.floats(0.005, 0.5))
def test_runs_needed_is_the_fewest_that_settle(values, relative):
    needed = statistics.runs_needed(values, relative)
    spread = np.std(values, ddof=1) / np.mean(values)

    def settled(n):
        return stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n) <= relative * (1 + 1e-4)

    assert needed >= 3
    assert settled(needed)
    if needed > 3:
        limit = relative * (1 - 1e-4)
        assert stats.t.ppf(0.975, needed - 2) * spread / math.sqrt(needed - 1) > limit


def test_equal_runs_are_settled_at_once():
    assert statistics.relative_half_width([5.0, 5.0, 5.0]) == 0
    assert statistics.runs_needed([5.0, 5.0, 5.0], 0.001) == 3
    assert statistics.relative_half_width([0.0, 0.0, 0.0]) == 0
    assert statistics.relative_half_width([-1.0, 0.0, 1.0]) == math.inf


@given(RUNS)
def test_the_width_is_that_of_the_interval(values):
    low, high = statistics.runs_interval(values)
    width = statistics.relative_half_width(values)
    assert width * np.mean(values) == pytest.approx((high - low) / 2, rel=1e-6, abs=1e-9)


def test_pairs_cancel_what_both_runs_share():
    machine = np.array([1.0, 1.5, 0.7, 1.2])  # how fast the machine happened to be
    ratio, (low, high) = statistics.paired_ratio((2.0 * machine).tolist(), machine.tolist())
    assert ratio == pytest.approx(2.0)
    assert low == pytest.approx(2.0)
    assert high == pytest.approx(2.0)
    ratio, interval = statistics.paired_ratio([4.0, 3.0], [2.0, 1.0])
    assert ratio == pytest.approx(2.5)
    assert interval is None


@given(st.lists(st.integers(0, 50), min_size=2, max_size=9, unique=True))
def test_the_trend_equals_kendall_and_theil_sen(values):
    slope, p_value = statistics.trend(values)
    assert slope == pytest.approx(stats.theilslopes(values).slope)
    if len(values) <= 7:
        expected = stats.kendalltau(range(len(values)), values, method="exact").pvalue
        assert p_value == pytest.approx(expected)


@given(st.permutations(range(12)))
def test_the_trend_of_many_values_is_nearly_exact(values):
    _, p_value = statistics.trend(values)
    exact = stats.kendalltau(range(12), values, method="exact").pvalue
    assert p_value == pytest.approx(exact, abs=0.02)


def test_a_trend_needs_five_values_to_be_seen():
    assert statistics.trend([1.0, 2.0, 3.0, 4.0])[1] > 0.05
    assert statistics.trend([1.0, 2.0, 3.0, 4.0, 5.0])[1] < 0.05
    assert statistics.trend(list(range(20)))[1] < 1e-6
    assert statistics.trend([1.0, 1.0, 1.0, 1.0, 1.0]) == (0.0, 1.0)


def test_independent_samples_are_worth_themselves():
    values = np.random.default_rng(0).normal(size=4000)
    assert effective_samples(values) == pytest.approx(4000, rel=0.15)
    assert effective_samples([3.0] * 50) == 50
    assert effective_samples([1.0, 2.0]) == 2


@pytest.mark.parametrize("coefficient", [0.5, 0.9])
def test_an_autoregressive_series_is_worth_what_theory_says(coefficient):
    rng = np.random.default_rng(1)
    values, last = [], 0.0
    for shock in rng.normal(size=20_000):
        last = coefficient * last + shock
        values.append(last)
    expected = 20_000 * (1 - coefficient) / (1 + coefficient)
    assert effective_samples(values) == pytest.approx(expected, rel=0.25)


def median_of(drawn):
    return np.median(drawn, axis=1)


def test_the_block_bootstrap_covers_the_median_of_dependent_samples():
    rng = np.random.default_rng(2)
    covered = naive = 0
    for trial in range(60):
        shocks = rng.normal(size=300)
        values = [0.0]
        for shock in shocks:
            values.append(0.8 * values[-1] + shock)
        low, high = block_bootstrap(values, median_of, seed=trial, num_resamples=300)
        covered += low <= 0 <= high
        resampled = np.median(rng.choice(values, (300, 300)), axis=1)
        naive += np.percentile(resampled, 2.5) <= 0 <= np.percentile(resampled, 97.5)
    assert covered >= 49  # 57 expected of 60; a short series has a little less
    assert naive < covered - 8  # as if independent: far too narrow


def test_the_block_bootstrap_is_reproducible_and_knows_its_limits():
    values = list(np.random.default_rng(3).normal(size=100))
    assert block_bootstrap(values, median_of, seed=7) == block_bootstrap(values, median_of, seed=7)
    assert block_bootstrap(values[:5], median_of, seed=7) is None
    assert block_bootstrap([], median_of, seed=7) is None
