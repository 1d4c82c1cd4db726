"""The search on machines of known capacity: a queue that is computed, not waited for."""

import heapq
import math
import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.bench.percentiles import percentile
from llmopt.bench.slo_search import (
    AGREEING_ROUNDS,
    MAX_CLIMBS,
    MAX_ROUNDS,
    STEPS_PER_DECADE,
    STRIDE,
    rate_at,
    search_rate,
    step_of,
)
from llmopt.results.schema import ProbeRecord

STEP = 10 ** (1 / STEPS_PER_DECADE)


def probe(rate, holds, rounds_held=()):
    return ProbeRecord(rate, holds, False, rate, 1, 10, (1.0,), tuple(rounds_held))


def limited(limit):
    """Below the limit all is well, above it nothing."""
    return lambda rate, rounds: probe(rate, rate <= limit, [rate <= limit] * rounds)


@given(step=st.integers(-300, 400))
def test_rates_are_preferred_numbers(step):
    rate = rate_at(step)
    assert rate == float(f"{rate:.2e}")  # three digits
    assert step_of(rate) == step
    assert rate_at(step) < rate_at(step + 1) <= rate_at(step) * 1.031
    assert rate_at(step + STEPS_PER_DECADE) == pytest.approx(10 * rate)
    assert [rate_at(i) for i in range(4)] == [1.0, 1.02, 1.05, 1.07]


@given(limit=st.floats(1, 1000), start=st.floats(0.5, 16))
def test_the_limit_is_found_from_anywhere(limit, start):
    found = search_rate(limited(limit), start)
    assert found.rate <= limit < found.failing_rate
    assert step_of(found.failing_rate) == step_of(found.rate) + 1
    assert found.start_rate == start
    tried = {one.rate: one for one in found.probes}
    assert len(tried) == len(found.probes)
    for rate in (found.rate, found.failing_rate):
        assert len(tried[rate].rounds_held) == AGREEING_ROUNDS


def test_no_rate_that_holds_is_no_rate():
    found = search_rate(limited(0.0), 2.0)
    assert (found.rate, found.failing_rate) == (None, None)
    steps = [step_of(2.0) - i * STRIDE for i in range(5)]
    assert [one.rate for one in found.probes] == [rate_at(step) for step in steps]


def test_a_rate_that_nothing_bounds_says_so():
    found = search_rate(limited(math.inf), 2.0)
    assert found.rate == rate_at(step_of(2.0) + MAX_CLIMBS * STRIDE)
    assert found.failing_rate is None


@pytest.mark.parametrize("lucky", [True, False])
def test_a_lucky_or_unlucky_first_probe_does_not_decide(lucky):
    """The first look at the rates next to the limit is wrong, and more runs set it right."""
    limit, misled = rate_at(60), range(58, 61) if not lucky else range(61, 64)

    def measure(rate, rounds):
        holds = rate <= limit
        if rounds == 1 and step_of(rate) in misled:
            return probe(rate, not holds)
        return probe(rate, holds, [holds] * rounds)

    found = search_rate(measure, 2.0)
    assert (found.rate, found.failing_rate) == (limit, rate_at(61))
    assert len(found.probes) <= 14  # the bracket moves to the rates that are known next to it


def test_rounds_that_disagree_are_measured_on():
    asked = []

    def measure(rate, rounds):
        asked.append((rate, rounds))
        if rate == rate_at(step_of(3.0)):  # one of the three rounds has bad luck
            return probe(rate, True, [True, False, True, *[True] * (rounds - 3)][:rounds])
        return probe(rate, rate < 3.0, [rate < 3.0] * rounds)

    found = search_rate(measure, 1.0)
    assert found.rate == rate_at(step_of(3.0))
    rounds = {rate: [n for asked_rate, n in asked if asked_rate == rate] for rate, _ in asked}
    assert rounds[found.rate] == [1, AGREEING_ROUNDS, MAX_ROUNDS]
    assert rounds[found.failing_rate] == [1, AGREEING_ROUNDS]


class QueueMachine:
    """Serves `SLOTS` requests at a time; each run is a little slower or faster, each request too.

    Gaps are the same for all rates and searches, as a seed makes them. The SLO is on the p95 of the
    time until the first token, half a second.
    """

    SLOTS, NUM_REQUESTS, SERVICE_S, LIMIT_S = 4, 100, 0.4, 0.5

    def __init__(self, noise_seed, run_noise, runs_per_round):
        self.noise = random.Random(noise_seed)
        self.run_noise = run_noise
        self.per_round = runs_per_round
        self.runs = {}
        self.num_runs = 0

    def __call__(self, rate, rounds):
        runs = self.runs.setdefault(rate, [])
        while len(runs) < rounds * self.per_round:
            runs.append(self.run(rate, len(runs) % self.per_round))
        pieces = [runs[i : i + self.per_round] for i in range(0, len(runs), self.per_round)]
        return probe(rate, self.holds(runs), map(self.holds, pieces))

    def holds(self, runs):
        return percentile(sorted(value for run in runs for value in run), 95) <= self.LIMIT_S

    def run(self, rate, repeat):
        self.num_runs += 1
        speed = self.noise.lognormvariate(0, self.run_noise)
        free = [0.0] * self.SLOTS
        waits = []
        for at in ARRIVALS[repeat]:
            start = max(at / rate, free[0])
            service = self.SERVICE_S * speed * self.noise.lognormvariate(0, 0.2)
            heapq.heapreplace(free, start + service)
            waits.append(start - at / rate + 0.04 * speed)
        return waits


GAPS = random.Random("gaps")
ARRIVALS = [
    list(accumulate(GAPS.expovariate(1) for _ in range(QueueMachine.NUM_REQUESTS)))
    for _ in range(3)
]


@pytest.mark.parametrize("run_noise", [0.03, 0.05])
def test_two_searches_agree_within_ten_percent_in_spite_of_noise(run_noise):
    found = []
    for seed in range(400):
        machine = QueueMachine(f"{seed} {run_noise}", run_noise, runs_per_round=3)
        alone = 1 / QueueMachine.SERVICE_S * machine.noise.lognormvariate(0, 0.1)
        found.append(search_rate(machine, alone).rate)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    agreeing = sum(max(pair) <= 1.1 * min(pair) for pair in pairs)
    assert len(pairs) == 200
    assert agreeing >= 190
    capacity = QueueMachine.SLOTS / QueueMachine.SERVICE_S
    assert all(0.5 * capacity < rate < capacity for rate in found)


def test_a_single_look_would_not_agree(monkeypatch):
    """The test above can fail: without further rounds the same machines disagree more often."""
    monkeypatch.setattr("llmopt.bench.slo_search.AGREEING_ROUNDS", 1)
    found = [search_rate(QueueMachine(seed, 0.05, 1), 2.5).rate for seed in range(200)]
    pairs = zip(found[::2], found[1::2], strict=True)
    assert sum(max(pair) <= 1.1 * min(pair) for pair in pairs) < 90
