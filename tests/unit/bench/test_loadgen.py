import asyncio
import signal
from typing import Any

import pytest

from llmopt.bench.loadgen import run_load
from llmopt.bench.metrics import itl_s, tpot_s, ttft_s
from llmopt.bench.workload import RunPrompts
from llmopt.results.schema import LoadSpec, RunRecord


def serve(
    make: Any,
    backend: Any,
    *,
    concurrency: int = 2,
    num_requests: int = 6,
    warmup: int = 0,
    output_tokens: int = 5,
    **options: Any,
) -> RunRecord:
    load = LoadSpec(concurrency, num_requests, 3, output_tokens, warmup)
    prompts = RunPrompts(
        warmup=tuple((1000 + i, 1, 2) for i in range(warmup)),
        measured=tuple((i, 1, 2) for i in range(num_requests)),
    )
    return make.run_virtual(
        lambda loop: run_load(backend, load, prompts, repeat=3, seed=11, clock=loop.time, **options)
    )


def test_known_delays_are_recovered(make):
    backend = make.FakeBackend(lambda index: make.steady(0.25, 0.05, 5))
    run = serve(make, backend)
    assert [ttft_s(r) for r in run.requests] == pytest.approx([0.25] * 6)
    assert [tpot_s(r) for r in run.requests] == pytest.approx([0.05] * 6)
    assert run.duration_s == pytest.approx(3 * 0.45)
    assert all(r.finish_reason == "length" and r.error is None for r in run.requests)
    assert (run.repeat, run.seed) == (3, 11)


def test_several_tokens_per_event_are_counted_not_chunks(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.02, 9, per_event=4))
    run = serve(make, backend, output_tokens=9)
    request = run.requests[0]
    assert request.token_counts == (1, 4, 4)
    assert request.num_output_tokens == 9
    assert tpot_s(request) == pytest.approx(0.02)
    assert list(itl_s(request)) == pytest.approx([0.02] * 8)


@pytest.mark.parametrize(("concurrency", "num_requests"), [(1, 4), (3, 7), (8, 5)])
def test_closed_loop_keeps_exactly_the_concurrency(make, concurrency, num_requests):
    peak = 0

    def script(index: int) -> Any:
        nonlocal peak
        peak = max(peak, backend.open_streams + 1)
        return make.steady(0.1 + 0.01 * index, 0.01, 5)

    backend = make.FakeBackend(script)
    run = serve(make, backend, concurrency=concurrency, num_requests=num_requests)
    assert peak == min(concurrency, num_requests)
    assert [prompt[0] for prompt, _ in backend.asked] == list(range(num_requests))
    assert [r.request_id for r in run.requests] == [f"request-{i}" for i in range(num_requests)]


def test_a_request_is_scheduled_when_a_slot_becomes_free(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    run = serve(make, backend, concurrency=1, num_requests=3)
    for earlier, later in zip(run.requests, run.requests[1:], strict=False):
        assert later.scheduled_s == pytest.approx(earlier.done_s)
        assert later.scheduled_s <= later.sent_s < later.first_token_s
    assert run.requests[0].scheduled_s == pytest.approx(0)


def test_params_reach_the_backend(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    serve(make, backend, output_tokens=5)
    params = backend.asked[0][1]
    assert (params.max_tokens, params.ignore_eos, params.temperature) == (5, True, 0.0)


def test_warmup_is_served_first_and_not_recorded(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    run = serve(make, backend, warmup=3, num_requests=4)
    assert [prompt[0] for prompt, _ in backend.asked] == [1000, 1001, 1002, 0, 1, 2, 3]
    assert run.num_warmup_requests == 3
    assert len(run.requests) == 4
    assert run.requests[0].scheduled_s == pytest.approx(0)
    assert run.step_stats["num_steps"] == 4 * 5  # the warm-up's steps are not in it
    assert run.step_stats["peak_used_blocks"] == 7


def test_failed_warmup_is_not_counted(make):
    backend = make.FakeBackend(
        lambda index: make.Script((), OSError("x")) if index == 0 else make.steady(0.1, 0.1, 5)
    )
    run = serve(make, backend, warmup=2)
    assert run.num_warmup_requests == 1
    assert all(r.error is None for r in run.requests)


def test_failure_in_the_middle_is_a_record_and_the_others_go_on(make):
    broken = make.Script(((0.1, 1), (0.1, 1)), RuntimeError("the engine fell over"))
    backend = make.FakeBackend(lambda index: broken if index == 2 else make.steady(0.1, 0.1, 5))
    run = serve(make, backend)
    failed = run.requests[2]
    assert failed.error == "RuntimeError: the engine fell over"
    assert (failed.num_output_tokens, failed.done_s) == (2, None)
    assert failed.first_token_s is not None
    assert [r.error for i, r in enumerate(run.requests) if i != 2] == [None] * 5
    assert backend.open_streams == 0


def test_silence_is_given_up_and_the_stream_closed(make):
    hung = make.Script(((0.1, 1), (1e6, 1)))
    backend = make.FakeBackend(lambda index: hung if index == 0 else make.steady(0.1, 0.1, 5))
    run = serve(make, backend, concurrency=1, num_requests=2, idle_timeout_s=30)
    assert run.requests[0].error == "the stream was silent for 30 s"
    assert run.requests[0].num_output_tokens == 1
    assert run.requests[1].error is None
    assert run.requests[1].scheduled_s == pytest.approx(30.1)
    assert backend.open_streams == 0


def test_a_slow_stream_is_not_a_silent_one(make):
    backend = make.FakeBackend(lambda index: make.steady(20, 20, 5))
    run = serve(make, backend, num_requests=1, idle_timeout_s=30)
    assert run.requests[0].error is None
    assert run.requests[0].last_token_s == pytest.approx(100)


def test_timeout_of_the_backend_is_told_from_ours(make):
    backend = make.FakeBackend(lambda index: make.Script(((0.1, 1),), TimeoutError("socket")))
    run = serve(make, backend, num_requests=1)
    assert run.requests[0].error == "TimeoutError: socket"


def test_empty_stream_is_an_error(make):
    backend = make.FakeBackend(lambda index: make.Script(()))
    run = serve(make, backend, num_requests=1)
    assert run.requests[0].error == "the stream ended without a token"
    assert run.requests[0].first_token_s is None


def test_event_without_tokens_does_not_set_the_first_token_time(make):
    backend = make.FakeBackend(lambda index: make.Script(((0.1, 0), (0.1, 1), (0.1, 1), (0.1, 0))))
    request = serve(make, backend, num_requests=1).requests[0]
    assert request.token_times_s == pytest.approx((0.2, 0.3))
    assert request.token_counts == (1, 1)
    assert request.finish_reason == "length"
    assert request.done_s == pytest.approx(0.4)


def test_what_the_backend_reports_is_recorded(make):
    backend = make.FakeBackend(
        lambda index: make.Script(((0.1, 5),), num_prompt_tokens=2, num_preemptions=4)
    )
    request = serve(make, backend, num_requests=1).requests[0]
    assert (request.num_prompt_tokens, request.num_preemptions) == (2, 4)


def test_progress_counts_requests(make):
    seen: list[int] = []
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    serve(make, backend, warmup=2, num_requests=4, on_request=seen.append)
    assert seen == [1, 2, 3, 4]


def test_client_observes_requests_in_flight(make):
    backend = make.FakeBackend(lambda index: make.steady(0.25, 0.05, 5))
    run = serve(make, backend, concurrency=3, num_requests=9)
    assert run.step_stats["client_mean_in_flight"] == pytest.approx(3, rel=0.02)
    assert run.step_stats["client_num_ticks"] == pytest.approx(135, abs=3)
    assert run.max_client_lag_s == pytest.approx(0, abs=1e-9)


def test_cancelling_the_run_cancels_every_request(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 10, 5))

    async def cancelled(loop: Any) -> int:
        prompts = RunPrompts((), tuple((i,) for i in range(6)))
        load = LoadSpec(4, 6, 1, 5, 0)
        task = asyncio.create_task(
            run_load(backend, load, prompts, repeat=0, seed=0, clock=loop.time)
        )
        await asyncio.sleep(5)
        open_before = backend.open_streams
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return open_before

    assert make.run_virtual(cancelled) == 4
    assert backend.open_streams == 0


def test_ctrl_c_reaches_the_caller_with_every_stream_closed(make):
    def script(index: int) -> Any:
        if index == 3:
            signal.raise_signal(signal.SIGINT)
        return make.steady(0.1, 0.1, 5)

    backend = make.FakeBackend(script)
    with pytest.raises(KeyboardInterrupt):
        serve(make, backend)
    assert backend.open_streams == 0
