import numpy as np
import pytest
from scipy import stats

from llmopt.quality.options import QualityOptions
from llmopt.quality.stopping import MIN_WINDOWS, PrecisionGoal, precision_goal


def test_the_half_width_is_students(monkeypatch):
    values = np.random.default_rng(0).normal(2.0, 0.4, size=30)
    half_width = stats.t.ppf(0.975, 29) * stats.sem(values) / values.mean()
    assert PrecisionGoal(half_width * 1.001).is_reached(values, np.ones(30))
    assert not PrecisionGoal(half_width * 0.999).is_reached(values, np.ones(30))
    assert not PrecisionGoal(half_width * 1.001, confidence=0.96).is_reached(values, np.ones(30))


def test_windows_weigh_as_much_as_they_have_tokens():
    """The mean is the same in all windows, although their sums differ a hundredfold."""
    counts = np.array([1.0, 100.0] * 20)
    assert PrecisionGoal(1e-9).is_reached(3 * counts, counts)


def test_few_windows_are_never_enough():
    assert not PrecisionGoal(0.5).is_reached(np.ones(MIN_WINDOWS - 1), np.ones(MIN_WINDOWS - 1))
    assert PrecisionGoal(0.5).is_reached(np.ones(MIN_WINDOWS), np.ones(MIN_WINDOWS))


def test_no_divergence_at_all_is_known_at_once():
    assert PrecisionGoal(0.05).is_reached(np.zeros(MIN_WINDOWS), np.ones(MIN_WINDOWS))


def test_options_set_the_goal():
    assert precision_goal(QualityOptions()) is None
    goal = precision_goal(QualityOptions(until_ci=0.05, confidence=0.9))
    assert goal == PrecisionGoal(0.05, 0.9)


@pytest.mark.parametrize(("variation", "goal"), [(0.11, 0.05), (0.25, 0.1)])
def test_stopping_early_leaves_the_interval_nearly_as_good(variation, goal):
    """Coverage of the interval at the window where scoring stops, over 4,000 texts."""
    generator = np.random.default_rng(2)
    sigma = np.sqrt(np.log1p(variation**2))
    values = np.exp(sigma * generator.standard_normal((4000, 150)) - sigma**2 / 2)
    number = np.arange(1, 151)
    mean = values.cumsum(axis=1) / number
    variance = ((values**2).cumsum(axis=1) - number * mean**2) / np.maximum(number - 1, 1)
    quantile = stats.t.ppf(0.975, np.maximum(number - 1, 1))
    half_width = quantile * np.sqrt(np.maximum(variance, 0) / number)
    narrow = (half_width <= goal * mean) & (number >= MIN_WINDOWS)
    assert narrow.any(axis=1).all()
    last = narrow.argmax(axis=1)
    stopped = np.arange(4000)
    for index in (0, 7):  # the arrays above are what the goal itself says
        row = values[index, : last[index] + 1]
        assert PrecisionGoal(goal).is_reached(row, np.ones(len(row)))
        if last[index] + 1 > MIN_WINDOWS:
            assert not PrecisionGoal(goal).is_reached(row[:-1], np.ones(len(row) - 1))
    covered = np.abs(mean[stopped, last] - 1) <= half_width[stopped, last]
    assert 0.93 <= covered.mean() <= 0.97
