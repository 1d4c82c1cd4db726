import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmopt.quality import bootstrap
from llmopt.quality.bootstrap import ratio_interval


def coverage(draw: str, num_windows: int, num_trials: int = 500, confidence: float = 0.95) -> float:
    """How often the interval holds the true mean of correlated tokens of random windows."""
    generator = np.random.default_rng(5)
    num_tokens = np.full(num_windows, 50.0)
    hits = 0
    for trial in range(num_trials):
        window_effect = generator.normal(size=num_windows)
        if draw == "lognormal":
            window_effect = np.exp(window_effect / 2) - np.exp(1 / 8)
        token_noise = generator.normal(size=(num_windows, 50)).sum(axis=1)
        sums = 50 * (3.0 + window_effect) + token_noise
        low, high = ratio_interval(
            sums, num_tokens, confidence=confidence, num_resamples=600, seed=trial
        )
        hits += low <= 3.0 <= high
    return hits / num_trials


@pytest.mark.parametrize(
    ("draw", "num_windows", "confidence", "lowest", "highest"),
    [
        ("normal", 8, 0.95, 0.905, 0.97),  # 0.937 in 4,000 trials; plain percentiles: 0.88
        ("normal", 16, 0.95, 0.92, 0.98),
        ("normal", 16, 0.8, 0.75, 0.85),
        ("lognormal", 16, 0.95, 0.88, 0.98),
    ],
)
def test_coverage_is_what_it_says(draw, num_windows, confidence, lowest, highest):
    assert lowest <= coverage(draw, num_windows, confidence=confidence) <= highest


def kld_like_windows(num_trials: int, num_windows: int) -> np.ndarray:
    """Window means [num_trials, W] of heavy-tailed tokens in runs of 8, of true mean 1.

    Log-normal tokens of deviation 1.5 in windows of deviation 0.15: their means have a coefficient
    of variation of 0.26 and a skewness of 1.2, more than those of real divergences.
    """
    generator = np.random.default_rng(7)
    means = np.empty((num_trials, num_windows))
    for trial in range(num_trials):
        runs = np.repeat(generator.normal(size=(num_windows, 64)), 8, axis=1)
        own = generator.normal(size=(num_windows, 512))
        tokens = np.exp(1.5 * (runs + own) / np.sqrt(2) - 1.5**2 / 2)
        window = np.exp(0.15 * generator.normal(size=num_windows) - 0.15**2 / 2)
        means[trial] = window * tokens.mean(axis=1)
    return means


@pytest.mark.parametrize(
    ("num_windows", "lowest"),
    [(8, 0.89), (16, 0.93), (32, 0.93), (64, 0.93)],
)
def test_coverage_of_what_looks_like_divergences(num_windows, lowest):
    hits = 0
    trials = kld_like_windows(500, num_windows)
    for seed, means in enumerate(trials):
        low, high = ratio_interval(means, np.ones(num_windows), num_resamples=600, seed=seed)
        hits += low <= 1 <= high
    assert lowest <= hits / 500 <= 0.97


def test_drawing_tokens_instead_of_windows_would_be_far_too_narrow():
    """The reason for the block bootstrap, held as a number."""
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(16, 1)) + 0.1 * generator.normal(size=(16, 100))
    of_windows = ratio_interval(tokens.sum(axis=1), np.full(16, 100.0))
    of_tokens = ratio_interval(tokens.flatten(), np.ones(1600))
    assert np.diff(of_windows) > 5 * np.diff(of_tokens)


def test_equals_students_interval_for_many_normal_windows():
    values = np.random.default_rng(1).normal(2.0, 0.5, size=40)
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert ratio_interval(values, np.ones(40)) == pytest.approx(expected, abs=0.02)


def test_equals_scipys_percentiles_when_windows_are_many():
    values = np.random.default_rng(2).exponential(size=400)
    peer = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert ratio_interval(values, np.ones(400)) == pytest.approx((peer.low, peer.high), abs=0.01)


def test_same_seed_same_interval_and_other_seed_another():
    values = np.arange(10.0)
    first = ratio_interval(values, np.ones(10), seed=3)
    assert first == ratio_interval(values, np.ones(10), seed=3)
    assert first != ratio_interval(values, np.ones(10), seed=4)


def test_weights_windows_by_their_tokens():
    """A ratio of sums, not a mean of ratios: [1/1, 9/3] gives 10/4."""
    low, high = ratio_interval(np.array([1.0, 9.0] * 200), np.array([1.0, 3.0] * 200))
    assert low < 2.5 < high
    assert high - low < 0.2


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30),
    confidence=st.sampled_from([0.5, 0.8, 0.95, 0.999]),
    chunk_draws=st.sampled_from([1, 7, 1 << 20]),
)
@settings(max_examples=50, deadline=None)
def test_is_ordered_bounded_and_independent_of_the_chunks(values, confidence, chunk_draws):
    array = np.array(values)
    ones = np.ones(len(values))
    whole = ratio_interval(array, ones, confidence=confidence, num_resamples=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "CHUNK_DRAWS", chunk_draws)
        assert ratio_interval(array, ones, confidence=confidence, num_resamples=200) == whole
    slack = 1e-9 * (1 + np.abs(array).max())
    assert array.min() - slack <= whole[0] <= whole[1] <= array.max() + slack


def test_two_windows_give_their_extremes():
    assert ratio_interval(np.array([1.0, 2.0]), np.ones(2)) == pytest.approx((1.0, 2.0))


def test_equal_windows_give_a_point():
    assert ratio_interval(np.full(5, 6.0), np.full(5, 2.0)) == (3.0, 3.0)


@pytest.mark.parametrize("num_windows", [8, 16, 64])
def test_the_tail_is_that_of_students_interval_among_the_draws(num_windows):
    """Draws of W windows scatter less than the mean does, by sqrt((W - 1) / W)."""
    quantile = stats.t.ppf(0.975, num_windows - 1) * np.sqrt(num_windows / (num_windows - 1))
    own = bootstrap._expanded_tail(0.025, num_windows)
    assert own == pytest.approx(stats.norm.cdf(-quantile), rel=5e-3)
