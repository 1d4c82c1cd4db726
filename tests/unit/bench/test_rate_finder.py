"""Searches over the load generator, a backend on a clock that never waits, and the real engine."""

import asyncio
import random
from dataclasses import replace

import pytest

from llmopt.backends.protocol import TokenEvent
from llmopt.bench.loadgen import run_load
from llmopt.bench.rate_finder import find_rate, has_backlog, judge, require_rate, runs_per_round
from llmopt.bench.slo_search import AGREEING_ROUNDS
from llmopt.bench.speed import Served, measure_run
from llmopt.bench.workload import make_plan
from llmopt.bench.workload_spec import open_load
from llmopt.errors import UsageError
from llmopt.models.loader import load_model
from llmopt.recipe.check_loads import MIN_REQUESTS_PER_SLOT
from llmopt.recipe.loads import Load, Workload
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import SearchJournal, SearchRecord

TEXT = random.Random(0).choices(range(900), k=5000)
SLO = "ttft_p95<500ms,tpot_p95<80ms"
SLOTS = 4
CAPACITY = SLOTS / 0.2  # requests of five tokens


class QueueBackend:
    """Serves `SLOTS` requests at a time, a token takes about 0.04 s, noisily."""

    name, version = "queue", "1"

    def __init__(self, noise_seed):
        self.noise = random.Random(noise_seed)
        self.slots = asyncio.Semaphore(SLOTS)

    def stats(self):
        return {}

    async def stream(self, prompt, params):
        async with self.slots:
            speed = self.noise.lognormvariate(0, 0.2)
            for _ in range(params.max_tokens):
                await asyncio.sleep(0.04 * speed * self.noise.uniform(0.9, 1.1))
                yield TokenEvent(1)


def plan_of(slo=SLO, num_requests=60):
    load = Load(SLOTS, num_requests, 2, 5, "poisson", slo=slo, workload=Workload("random"))
    return open_load(load, 0)


def measuring(make, noise_seed, stop_after=None):
    """A `measure` for `find_rate`; it notes (rate, repeat) of its runs in `made`."""
    made = []

    def measure(plan, repeat):
        if len(made) == stop_after:
            raise KeyboardInterrupt
        made.append((plan.spec.rate, repeat))
        measure.variants.append(plan.variant)
        requests = make_plan(plan, TEXT, seed=0, repeat=repeat)

        async def main(loop):
            backend = QueueBackend(f"{noise_seed} {len(made)}")
            return await run_load(backend, requests, repeat=repeat, seed=0, clock=loop.time)

        return make.run_virtual(main)

    measure.made, measure.variants = made, []
    return measure


def test_the_rate_that_is_found_is_below_the_capacity_and_its_neighbour_fails(make):
    measure = measuring(make, 1)
    found = find_rate(measure, plan_of(), repeats=2)
    probes = {probe.rate: probe for probe in found.probes}
    best, next_one = probes[found.rate], probes[found.failing_rate]
    assert 0.5 * CAPACITY < found.rate < 1.15 * CAPACITY  # a queue of 60 is over before it is long
    assert best.holds
    assert not next_one.holds
    assert best.goodput == pytest.approx(found.rate, rel=0.25)
    assert best.terms_ms[0] <= 500
    assert best.num_requests == 60 * best.num_runs
    assert best.num_runs >= 2 * AGREEING_ROUNDS
    assert sum(probe.num_runs for probe in found.probes) + 1 == len(measure.made)
    assert {repeat for _, repeat in measure.made} == {0, 1}  # every round has the same gaps
    assert measure.variants == list(range(len(measure.made)))  # and prompts of its own
    assert from_json(SearchRecord, to_json(found), "test") == found


def test_two_searches_find_nearly_the_same(make):
    first, again = (find_rate(measuring(make, seed), plan_of(), repeats=2).rate for seed in (1, 2))
    assert again == pytest.approx(first, rel=0.1)


def test_a_search_that_is_interrupted_goes_on_and_finds_the_same(make):
    """Wherever it is cut, the runs that were made are not made again."""
    whole_measure = measuring(make, 1)
    whole = find_rate(whole_measure, plan_of(num_requests=30), repeats=1)
    number = len(whole_measure.made)
    for stop_after in (0, 1, number // 2, number - 1):
        kept: list[SearchJournal] = []
        with pytest.raises(KeyboardInterrupt):
            find_rate(
                measuring(make, 1, stop_after),
                plan_of(num_requests=30),
                repeats=1,
                on_run=kept.append,
            )
        assert len(kept) == stop_after
        journal = None
        if kept:
            journal = from_json(SearchJournal, to_json(kept[-1]), "test")
        measure = measuring(make, 1)
        measure.made.extend([None] * stop_after)  # the same noise as without the interruption
        assert find_rate(measure, plan_of(num_requests=30), repeats=1, journal=journal) == whole
        assert len(measure.made) == number


def test_a_finished_search_needs_no_run_again(make):
    kept: list[SearchJournal] = []
    whole = find_rate(measuring(make, 1), plan_of(), repeats=1, on_run=kept.append)
    again = find_rate(measuring(make, 1, stop_after=0), plan_of(), repeats=1, journal=kept[-1])
    assert again == whole


@pytest.mark.parametrize(
    ("slo", "num_requests", "repeats", "number"),
    [
        ("ttft_p95<1s", 20, 2, 3),  # 59 requests have an interval for p95
        ("ttft_p95<1s", 20, 5, 5),
        ("ttft_p50<1s,tpot_p99<1s", 100, 1, 3),  # 299 for p99
        ("ttft<1s", 4, 1, 1),
    ],
)
def test_there_are_requests_enough_for_every_percentile(slo, num_requests, repeats, number):
    assert runs_per_round(plan_of(slo, num_requests), repeats) == number


def test_far_from_the_bounds_one_look_is_enough(make):
    measure = measuring(make, 1)
    found = find_rate(measure, plan_of("ttft_p50<100s", 60), repeats=3)
    by_rate = {probe.rate: probe.num_runs for probe in found.probes}
    assert min(by_rate.values()) == 1


def test_a_backend_that_falls_behind_holds_no_bound(make):
    # TPOT alone never suffers from a queue, so only the backlog can end the search
    found = find_rate(measuring(make, 1), plan_of("tpot_p95<1s"), repeats=1)
    assert found.failing_rate is not None
    assert found.rate < 1.5 * CAPACITY
    assert any(probe.met and probe.has_backlog for probe in found.probes)


def test_a_rate_that_nothing_exceeds_is_no_highest_rate(make):
    # as many requests as slots: none ever waits, so every rate keeps a bound on TPOT alone
    plan = plan_of("tpot_p50<1s", num_requests=SLOTS)
    found = find_rate(measuring(make, 1), plan, repeats=1)
    assert found.rate is not None
    with pytest.raises(UsageError, match=r"every rate keeps the SLO, up to .* requests/s"):
        require_rate(found)


@pytest.mark.parametrize("slots", [SLOTS, 2 * SLOTS])
def test_the_fewest_requests_of_a_search_are_enough_to_see_a_backlog(make, slots):
    plan = plan_of("tpot_p50<1s", num_requests=MIN_REQUESTS_PER_SLOT * slots)
    plan = replace(plan, spec=replace(plan.spec, concurrency=slots))
    found = find_rate(measuring(make, 1), plan, repeats=1)
    assert CAPACITY / 2 < require_rate(found) < 4 * CAPACITY


def test_a_backlog_is_more_than_what_is_served_and_a_tenth(make):
    ends = [make.request(scheduled_s=0.1 * i, done_s=5.0) for i in range(20)]
    assert has_backlog(make.run(ends), num_slots=4)
    assert not has_backlog(make.run(ends), num_slots=18)
    assert not has_backlog(make.run([make.request(scheduled_s=i, done_s=i) for i in range(9)]), 1)
    failed = [make.request(scheduled_s=0.1 * i, done_s=None, error="x") for i in range(20)]
    assert has_backlog(make.run(failed), num_slots=4)


def test_a_verdict_is_over_all_runs_and_over_each_round(make):
    quick = make.run([make.request(token_times_s=(0.3, 0.4, 0.5), done_s=0.5)] * 4)
    slow = make.run([make.request(token_times_s=(1.3, 1.4, 1.5), done_s=1.5)] * 4)
    load = replace(plan_of("ttft_p50<500ms").spec, concurrency=9)
    found = judge(2.0, [quick, quick, slow, slow, quick, quick, quick], load, per_round=2)
    assert found.holds
    assert found.rounds_held == (True, False, True)  # the last run is no whole round
    assert (found.num_runs, found.num_requests) == (7, 28)
    assert found.terms_ms == (pytest.approx(100),)
    assert not judge(2.0, [quick, slow, slow], load, per_round=3).holds


def test_a_rate_is_found_for_the_real_engine(tiny_llama):
    text = [2 + (7 * index) % 101 for index in range(2000)]
    served = Served(load_model(tiny_llama, dtype="float32"), text)

    def measure(plan, repeat):
        return measure_run(served, plan, repeat=repeat, seed=0)

    probes = []
    load = open_load(Load(3, 12, 20, 5, "poisson", slo="ttft_p50<10s"), 1)
    found = find_rate(measure, load, repeats=1, on_probe=probes.append)
    assert require_rate(found) > 0
    assert {probe.rate for probe in probes} == {probe.rate for probe in found.probes}
    impossible = open_load(Load(3, 4, 20, 5, "poisson", slo="ttft<0.001ms"), 0)
    nothing = find_rate(measure, impossible, repeats=1)
    assert nothing.rate is None
    with pytest.raises(UsageError, match="no rate keeps the SLO"):
        require_rate(nothing)
