"""What the load generator itself adds, on the real clock: nothing that shows in a measurement."""

import asyncio
import time
from statistics import median

import pytest

from llmopt.backends.protocol import TokenEvent
from llmopt.bench.loadgen import run_load
from llmopt.bench.workload import PlannedRequest, RunPlan


class PunctualBackend:
    """Yields at known times, and remembers when it really did."""

    name, version = "punctual", "1"

    def __init__(self, gap_s):
        self.gap_s = gap_s
        self.yielded_s = {}
        self.started_s = None  # the run begins right after its counters were first read

    def stats(self):
        self.started_s = self.started_s or time.perf_counter()
        return {}

    async def stream(self, prompt, params):
        times = self.yielded_s.setdefault(prompt[0], [])
        for _ in range(params.max_tokens):
            await asyncio.sleep(self.gap_s)
            times.append(time.perf_counter())
            yield TokenEvent(1)


def serve(backend, plan):
    return asyncio.run(run_load(backend, plan, repeat=0, seed=0))


@pytest.mark.timeout(60)
def test_events_of_64_streams_are_noted_within_a_millisecond_at_the_median():
    requests = tuple(PlannedRequest((i,), 40) for i in range(128))
    backend = PunctualBackend(gap_s=0.02)
    run = serve(backend, RunPlan((), requests, 64))
    added_s = [
        noted_s - (yielded_s - backend.started_s)
        for index, request in enumerate(run.requests)
        for noted_s, yielded_s in zip(request.token_times_s, backend.yielded_s[index], strict=True)
    ]
    assert len(added_s) == 128 * 40
    print(f"added at the median: {1e6 * median(added_s):.0f} us")
    assert abs(median(added_s)) < 0.001
    assert run.step_stats["client_lag_p50_s"] < 0.005


@pytest.mark.timeout(60)
def test_a_thousand_requests_per_second_are_sent_when_they_are_due():
    requests = tuple(PlannedRequest((i,), 4, i / 1000) for i in range(3000))
    run = serve(PunctualBackend(gap_s=0.02), RunPlan((), requests, 1))
    assert all(request.error is None for request in run.requests)
    late_s = sorted(request.sent_s - request.scheduled_s for request in run.requests)
    print(f"sent late: {1e3 * late_s[1500]:.2f} ms at p50, {1e3 * late_s[2970]:.2f} ms at p99")
    assert late_s[1500] < 0.002
    last_s = max(request.sent_s for request in run.requests)
    assert 3000 / last_s == pytest.approx(1000, rel=0.02)
