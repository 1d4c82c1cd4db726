import pytest
from scipy import stats

from llmopt.quality.student import upper_quantile, upper_tail


@pytest.mark.parametrize("degrees", [1, 2, 5, 9, 30, 200])
@pytest.mark.parametrize("t", [-2.5, 0.0, 0.7, 3.2, 8.0])
def test_tails_are_scipys(t, degrees):
    assert upper_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("degrees", [1, 2, 4, 15, 100, 1000, 1001, 50_000])
@pytest.mark.parametrize("tail", [0.05, 0.025, 0.003, 1e-6])
def test_quantiles_are_scipys(tail, degrees):
    assert upper_quantile(tail, degrees) == pytest.approx(stats.t.isf(tail, degrees), rel=1e-6)
