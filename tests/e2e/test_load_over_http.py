"""The load generator, the HTTP client, the metrics and the checks against a server whose every
delay and fault is known: the mock says what it did and when, on the same clock.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from statistics import median
from typing import Any

import pytest

from llmopt.backends.http_backend import HttpBackend
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.profiles.openai import OPENAI
from llmopt.bench.loadgen import run_load
from llmopt.bench.metrics import summarize
from llmopt.bench.validity import check_cell
from llmopt.bench.workload import PlannedRequest, RunPlan
from llmopt.errors import BackendError
from llmopt.results.schema import LoadSpec, RunRecord, Summary

LOAD = LoadSpec(
    concurrency=4, num_requests=16, prompt_tokens=6, output_tokens=17, warmup_requests=4
)
NUMBERS = count()
TRIES = 3  # a measurement on a machine that does other things too
OF_THE_MACHINE = {"client-lag", "littles-law", "machine", "spread", "drift"}  # it may be busy
STEADY = {"ttft_s": 0.08, "tpot_s": 0.01}
FAST = {"ttft_s": 0.02, "tpot_s": 0.002}
COUNTED_FROM_TOTAL = {"tokens_per_event": 4, "knows_each_usage": False}


def plan(load: LoadSpec, rate: float | None) -> RunPlan:
    def request(index: int) -> PlannedRequest:
        due_s = None if rate is None or index < load.warmup_requests else 0.0
        prompt = (index, *range(100, 99 + load.prompt_tokens))
        return PlannedRequest(prompt, load.output_tokens, scheduled_s=due_s)

    warmup = [request(index) for index in range(load.warmup_requests)]
    measured = [request(load.warmup_requests + index) for index in range(load.num_requests)]
    if rate is not None:
        measured = [replace(r, scheduled_s=index / rate) for index, r in enumerate(measured)]
    return RunPlan(tuple(warmup), tuple(measured), load.concurrency)


def run(
    mock: Any,
    behaviour: dict[str, Any],
    load: LoadSpec = LOAD,
    *,
    rate: float | None = None,
    **options: Any,
) -> tuple[RunRecord, list[dict[str, Any]]]:
    """A run, and what the server did for each of its requests."""
    model = mock.add(f"load-{next(NUMBERS)}", **behaviour)
    backend = HttpBackend(OPENAI, ServerOptions(mock.url, model))
    backend.start()
    record = backend.drive(
        lambda: asyncio.run(
            run_load(backend, plan(load, rate), repeat=0, seed=0, idle_timeout_s=1.0, **options)
        )
    )
    backend.stop()
    by_prompt = {entry["body"]["prompt"][0]: entry for entry in mock.log(model)}
    first = load.warmup_requests
    return record, [by_prompt[first + i] for i in range(len(record.requests))]


def truth(log: Sequence[dict[str, Any]], num_tokens: int, duration_s: float) -> dict[str, float]:
    """The metrics as the server's clock saw them."""
    first = [e["token_times_s"][0] - e["received_s"] for e in log]
    last = [e["token_times_s"][-1] - e["received_s"] for e in log]
    gaps = [
        (later - earlier) / tokens
        for e in log
        for earlier, later, tokens in zip(
            e["token_times_s"], e["token_times_s"][1:], e["token_counts"][1:], strict=False
        )
        for _ in range(tokens)
    ]
    return {
        "ttft_ms": 1000 * median(first),
        "tpot_ms": 1000
        * median((b - a) / (num_tokens - 1) for a, b in zip(first, last, strict=True)),
        "itl_ms": 1000 * median(gaps),
        "e2e_ms": 1000 * median(last),
        "output_throughput": num_tokens * len(log) / duration_s,
        "request_throughput": len(log) / duration_s,
    }


def found(summary: Summary, name: str) -> float:
    value = getattr(summary, name)
    return float(value if isinstance(value, float) else value.p50)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"jitter": 0.5},
        {"tokens_per_event": 4},
        COUNTED_FROM_TOTAL,
        {"role_first_s": 0.01},
        {"ping_every_s": 0.007},
        {"cut_bytes": 31, "text": " 日本", "line_end": "\r\n"},
        {"usage": "last chunk", "knows_each_usage": False},
        {"usage": "never"},
        {"first_extra_s": 0.2},
    ],
    ids=str,
)
def test_every_metric_is_recovered(mock, shape):
    """Within 2 % or 1 ms, by the server's clock; a machine that is busy may need another try."""
    for _ in range(TRIES):
        record, log = run(mock, STEADY | shape)
        assert [request.error for request in record.requests] == [None] * LOAD.num_requests
        assert {request.num_output_tokens for request in record.requests} == {LOAD.output_tokens}
        span_s = max(e["done_s"] for e in log) - min(e["received_s"] for e in log)
        summary = summarize([record], None, None, "float32")
        expected = truth(log, LOAD.output_tokens, span_s)
        recovered = {name: found(summary, name) for name in expected}
        within = {
            name: pytest.approx(value, rel=0.02, abs=1.0 if name.endswith("_ms") else 0.0)
            for name, value in expected.items()
        }
        if recovered == within:
            break
    assert recovered == within


def test_an_open_loop_counts_from_the_schedule(mock):
    """A server of one slot that serves in 0.1 s, asked every 0.05 s: request i waits 0.05 i s."""
    load = replace(LOAD, kind="constant", rate=20.0, num_requests=10, output_tokens=1)
    record, log = run(mock, {"ttft_s": 0.1, "slots": 1}, load, rate=20.0)
    waited = [request.first_token_s - request.scheduled_s for request in record.requests]
    by_schedule = [
        entry["token_times_s"][0] - log[0]["received_s"] - index / 20
        for index, entry in enumerate(log)
    ]
    assert waited == pytest.approx(by_schedule, abs=0.01)
    assert waited[-1] > 0.5


def test_sixty_four_streams_lose_less_than_a_millisecond(mock):
    """From the server's write to the time in the record, beyond what the fastest event took."""
    load = replace(LOAD, concurrency=64, num_requests=128, output_tokens=40, warmup_requests=64)
    added_s = []
    for _ in range(TRIES):
        record, log = run(mock, {"ttft_s": 0.1, "tpot_s": 0.03}, load)
        late_s = [
            seen_s - written_s
            for request, entry in zip(record.requests, log, strict=True)
            for seen_s, written_s in zip(request.token_times_s, entry["token_times_s"], strict=True)
        ]
        assert len(late_s) == 128 * 40
        added_s.append(median(late_s) - min(late_s))
        if added_s[-1] < 0.001:
            break
    assert min(added_s) < 0.001


def test_a_thousand_requests_per_second_are_sent_when_they_are_due(mock):
    load = replace(LOAD, kind="constant", rate=1000.0, num_requests=3000, output_tokens=1)
    lags_s = []
    for _ in range(TRIES):
        record, _ = run(mock, {"ttft_s": 0.0}, load, rate=1000.0)
        assert [request.error for request in record.requests] == [None] * 3000
        lags_s.append(median(request.sent_s - request.scheduled_s for request in record.requests))
        if record.duration_s < 3.1 and lags_s[-1] < 0.001:
            break
    assert (min(lags_s) < 0.001, record.duration_s < 3.1) == (True, True)


@pytest.mark.parametrize(
    ("behaviour", "check"),
    [
        ({"fault": "error event", "fault_every": 7}, "requests-served"),
        ({"fault": "hang", "fault_every": 7}, "requests-served"),
        ({"fault": "drop", "fault_every": 7}, "requests-served"),
        ({"fault": "malformed", "fault_every": 7}, "requests-served"),
        ({"fault": "no finish", "fault_every": 7}, "requests-served"),
        ({"fault": "not a stream", "fault_every": 7}, "requests-served"),
        ({"fault": "status", "status": 429, "fault_every": 7}, "requests-served"),
        ({"fault": "status", "status": 500, "fault_every": 7}, "requests-served"),
        ({"max_generated": 9}, "output-length"),
        ({"max_generated": 9}, "finish-reasons"),
        ({"output_count_error": 3}, "output-length"),
        ({"tokens_per_event": 4, "usage": "never"}, "output-length"),
        ({"usage": "never"}, "token-counts"),
        ({"max_prompt": 5}, "prompt-length"),
        ({"cached_tokens": 4}, "cache-state"),
        ({"slots": 1}, "parallelism"),
    ],
    ids=str,
)
def test_a_fault_fails_its_check(mock, behaviour, check):
    record, _ = run(mock, FAST | behaviour)
    failed = {each.name for each in check_cell(LOAD, [record]) if not each.passed}
    assert check in failed


def test_a_slow_first_request_fails_its_check(mock):
    load = replace(LOAD, warmup_requests=0)
    record, _ = run(mock, FAST | {"first_extra_s": 0.5}, load)
    failed = {each.name for each in check_cell(load, [record]) if not each.passed}
    assert "first-request" in failed


def test_without_a_fault_no_check_fails(mock):
    record, _ = run(mock, STEADY | {"cached_tokens": 0})
    failed = {each.name for each in check_cell(LOAD, [record]) if not each.passed}
    assert failed <= OF_THE_MACHINE


def test_a_server_that_is_not_ready_is_no_server(mock):
    loading = type(mock)(ready_after_s=60)
    with loading, pytest.raises(BackendError, match="503"):
        HttpBackend(OPENAI, ServerOptions(loading.url, "mock")).start()
