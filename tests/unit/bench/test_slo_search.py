import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.protocol import TokenEvent
from llmopt.bench.loadgen import run_load
from llmopt.bench.slo import parse_slo
from llmopt.bench.slo_search import has_backlog, search_rate
from llmopt.bench.workload import make_plan
from llmopt.bench.workload_spec import open_load
from llmopt.recipe.loads import Load, Workload

TEXT = random.Random(0).choices(range(900), k=5000)
SLO = parse_slo("ttft_p95<500ms,tpot_p95<80ms")
SLOTS = 4


class QueueBackend:
    """Serves `SLOTS` requests at a time, each for about 0.4 s, noisily."""

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


def measuring(make, noise_seed, *, prompt_seed=0, num_requests=300):
    load = open_load(
        Load(SLOTS, num_requests, 2, 10, "poisson", slo="ttft<1s", workload=Workload("random")), 0
    )

    def measure(rate):
        runs = []
        for repeat in range(2):
            plan = make_plan(load.at_rate(rate), TEXT, seed=prompt_seed, repeat=repeat)

            async def main(loop, plan=plan, repeat=repeat):
                backend = QueueBackend((noise_seed, repeat, rate).__hash__())
                return await run_load(backend, plan, repeat=repeat, seed=0, clock=loop.time)

            runs.append(make.run_virtual(main))
        return runs

    return measure


def search(measure, slo=SLO, first_rate=2.0):
    return search_rate(measure, slo, first_rate=first_rate, num_slots=SLOTS)


def test_the_same_rate_is_found_twice_within_ten_percent_in_spite_of_noise(make):
    first = search(measuring(make, noise_seed=1))
    again = search(measuring(make, noise_seed=2), first_rate=3.3)
    assert first.is_bounded
    assert again.is_bounded
    assert again.rate == pytest.approx(first.rate, rel=0.1)
    capacity = SLOTS / 0.41
    assert 0.5 * capacity < first.rate < capacity
    best = next(probe for probe in first.probes if probe.rate == first.rate)
    assert best.holds
    assert best.goodput == pytest.approx(first.rate, rel=0.15)


def step_runs(make, limit):
    """Below the limit all is well; above it first tokens are late."""

    def measure(rate):
        ttft_s = 0.1 if rate <= limit else 0.9
        times = (ttft_s, ttft_s + 0.01)
        request = make.request(scheduled_s=0.0, sent_s=0.0, token_times_s=times)
        return [make.run([request])]

    return measure


@given(limit=st.floats(1, 1000), first_rate=st.floats(0.5, 16))
def test_the_limit_is_found_from_anywhere(limit, first_rate):
    from types import SimpleNamespace

    found = search_rate(
        step_runs(SimpleNamespace(request=_request, run=_run), limit),
        SLO,
        first_rate=first_rate,
        num_slots=1,
    )
    assert found.is_bounded
    assert limit / 1.0501 <= found.rate <= limit
    rates = [probe.rate for probe in found.probes]
    assert len(set(rates)) == len(rates)


def _request(**changes):
    from llmopt.results.schema import RequestRecord

    times = changes.pop("token_times_s")
    fields = {"first_token_s": times[0], "last_token_s": times[-1], "done_s": times[-1]}
    return RequestRecord(
        request_id="request-0",
        num_prompt_tokens=1,
        num_output_tokens=2,
        token_times_s=times,
        token_counts=(1, 1),
        finish_reason="length",
        **fields,
        **changes,
    )


def _run(requests):
    from llmopt.results.schema import RunRecord

    return RunRecord(0, "", 0, 1.0, tuple(requests), {})


def test_no_rate_that_holds_is_no_rate(make):
    found = search(step_runs(make, limit=0.0))
    assert (found.rate, found.is_bounded) == (None, False)
    assert [probe.rate for probe in found.probes] == [2, 1, 0.5, 0.25, 0.125]
    assert all(not probe.holds for probe in found.probes)


def test_a_rate_that_nothing_bounds_says_so(make):
    found = search(step_runs(make, limit=1e9))
    assert found.rate == 2.0 * 2**12
    assert not found.is_bounded


def test_a_backend_that_falls_behind_holds_no_bound(make):
    # TPOT alone never suffers from a queue, so only the backlog can end the search
    found = search(measuring(make, noise_seed=1), parse_slo("tpot_p95<1s"))
    assert found.is_bounded
    assert found.rate < 1.3 * SLOTS / 0.4
    assert any(probe.met and probe.has_backlog for probe in found.probes)


def test_a_backlog_is_more_than_what_is_served_and_a_tenth(make):
    ends = [make.request(scheduled_s=0.1 * i, done_s=5.0) for i in range(20)]
    assert has_backlog(make.run(ends), num_slots=4)
    assert not has_backlog(make.run(ends), num_slots=18)
    assert not has_backlog(make.run([make.request(scheduled_s=i, done_s=i) for i in range(9)]), 1)
    failed = [make.request(scheduled_s=0.1 * i, done_s=None, error="x") for i in range(20)]
    assert has_backlog(make.run(failed), num_slots=4)
