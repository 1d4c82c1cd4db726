import pytest
from scipy.stats import binomtest

from llmopt.quality.greedy_summary import wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 6), (3, 32), (16, 32), (32, 32)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_a_share_is_scipys(successes, trials, confidence):
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(successes, trials, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
