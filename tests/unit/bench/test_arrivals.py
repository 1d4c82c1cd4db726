import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.arrivals import arrival_times, ramp_duration_s
from llmopt.results.schema import LoadSpec


def times(kind, number=4000, rate=8.0, seed=(0,), **fields):
    spec = LoadSpec(4, number, 16, 8, 0, kind=kind, rate=rate, **fields)
    return arrival_times(spec, seed)


KINDS = [
    ("constant", {}),
    ("poisson", {}),
    ("gamma", {"burstiness": 0.3}),
    ("burst", {}),
    ("ramp", {"start_rate": 2.0}),
    ("ramp", {"start_rate": 12.0, "num_steps": 3}),
]


@given(
    kind=st.sampled_from(KINDS),
    number=st.integers(1, 50),
    rate=st.floats(0.01, 1000),
    seed=st.integers(0, 9),
)
def test_times_ascend_from_the_start_and_the_seed_decides(kind, number, rate, seed):
    name, fields = kind
    found = times(name, number, rate, (seed,), **fields)
    assert len(found) == number
    assert found == sorted(found)
    assert found[0] >= 0
    assert found == times(name, number, rate, (seed,), **fields)
    assert all(type(at_s) is float for at_s in found)


def test_constant_gaps_are_equal_and_a_burst_has_none():
    assert times("constant", 4, 4.0) == [0, 0.25, 0.5, 0.75]
    assert times("burst", 3) == [0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "burstiness", "variation"),
    [("poisson", None, 1.0), ("gamma", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5)],
)
def test_gaps_have_the_rate_and_the_burstiness(kind, burstiness, variation):
    gaps = np.diff([0.0, *times(kind, 20_000, burstiness=burstiness)])
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05)


def test_poisson_gaps_are_exponential():
    from scipy.stats import kstest

    gaps = np.diff(times("poisson", 5000))
    assert kstest(gaps, "expon", args=(0, 1 / 8)).pvalue > 0.01
    assert kstest(
        np.diff(times("gamma", 5000, burstiness=4.0)), "expon", args=(0, 1 / 8)
    ).pvalue < (1e-6)


@pytest.mark.parametrize("kind", ["poisson", "constant"])
def test_a_higher_rate_is_the_same_luck_closer_together(kind):
    assert times(kind, 50, 16.0) == pytest.approx([at_s / 2 for at_s in times(kind, 50, 8.0)])


def test_other_seeds_have_other_times():
    assert times("poisson", seed=(0, 1)) != times("poisson", seed=(0, 2))


@pytest.mark.parametrize("start_rate", [1.0, 8.0, 20.0])
def test_a_ramp_changes_its_rate_steadily(start_rate):
    number = 20_000
    found = np.array(times("ramp", number, 8.0, start_rate=start_rate))
    duration_s = ramp_duration_s(number, start_rate, 8.0)
    counts, edges = np.histogram(found, bins=10, range=(0, duration_s))
    assert counts.sum() == number  # all of them lie on the ramp
    middles = (edges[:-1] + edges[1:]) / 2 / duration_s
    expected = (start_rate + (8 - start_rate) * middles) * duration_s / 10
    assert counts == pytest.approx(expected, abs=5 * np.sqrt(expected).max())


def test_a_ramp_in_steps_holds_each_rate_for_the_same_time():
    found = np.array(times("ramp", 30_000, 9.0, start_rate=1.0, num_steps=3))
    duration_s = ramp_duration_s(30_000, 1.0, 9.0)
    counts, _ = np.histogram(found, bins=6, range=(0, duration_s))
    per_second = counts / (duration_s / 6)
    assert per_second == pytest.approx([1, 1, 5, 5, 9, 9], rel=0.08)
