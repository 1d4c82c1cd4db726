import asyncio
import signal
from typing import Any

import pytest

from llmopt.bench.latencies import itl_s, tpot_s, ttft_s
from llmopt.bench.loadgen import run_load
from llmopt.bench.workload import PlannedRequest, RunPlan
from llmopt.results.schema import RunRecord


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
    plan = RunPlan(
        warmup=tuple(PlannedRequest((1000 + i, 1, 2), output_tokens) for i in range(warmup)),
        measured=tuple(PlannedRequest((i, 1, 2), output_tokens) for i in range(num_requests)),
        concurrency=concurrency,
    )
    return run(make, backend, plan, **options)


def run(make: Any, backend: Any, plan: RunPlan, **options: Any) -> RunRecord:
    return make.run_virtual(
        lambda loop: run_load(backend, plan, repeat=3, seed=11, clock=loop.time, **options)
    )


def planned(*due_s: float, **fields: Any) -> tuple[PlannedRequest, ...]:
    return tuple(PlannedRequest((i, 1, 2), 5, at_s, **fields) for i, at_s in enumerate(due_s))


def test_known_delays_are_recovered(make):
    backend = make.FakeBackend(lambda index: make.steady(0.25, 0.05, 5))
    record = serve(make, backend)
    assert [ttft_s(r) for r in record.requests] == pytest.approx([0.25] * 6)
    assert [tpot_s(r) for r in record.requests] == pytest.approx([0.05] * 6)
    assert record.duration_s == pytest.approx(3 * 0.45)
    assert all(r.finish_reason == "length" and r.error is None for r in record.requests)
    assert (record.repeat, record.seed) == (3, 11)


def test_several_tokens_per_event_are_counted_not_chunks(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.02, 9, per_event=4))
    record = serve(make, backend, output_tokens=9)
    request = record.requests[0]
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
    record = serve(make, backend, concurrency=concurrency, num_requests=num_requests)
    assert peak == min(concurrency, num_requests)
    assert [prompt[0] for prompt, _ in backend.asked] == list(range(num_requests))
    assert [r.request_id for r in record.requests] == [f"request-{i}" for i in range(num_requests)]


def test_a_request_is_scheduled_when_a_slot_becomes_free(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    record = serve(make, backend, concurrency=1, num_requests=3)
    for earlier, later in zip(record.requests, record.requests[1:], strict=False):
        assert later.scheduled_s == pytest.approx(earlier.done_s)
        assert later.scheduled_s <= later.sent_s < later.first_token_s
    assert record.requests[0].scheduled_s == pytest.approx(0)


def test_params_reach_the_backend(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    serve(make, backend, output_tokens=5)
    params = backend.asked[0][1]
    assert (params.max_tokens, params.ignore_eos, params.temperature) == (5, True, 0.0)


def test_warmup_is_served_first_and_not_recorded(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    record = serve(make, backend, warmup=3, num_requests=4)
    assert [prompt[0] for prompt, _ in backend.asked] == [1000, 1001, 1002, 0, 1, 2, 3]
    assert record.num_warmup_requests == 3
    assert len(record.requests) == 4
    assert record.requests[0].scheduled_s == pytest.approx(0)
    assert record.step_stats["num_steps"] == 4 * 5  # the warm-up's steps are not in it
    assert record.step_stats["peak_used_blocks"] == 7


def test_the_end_of_the_warmup_is_told_before_the_first_measured_request(make):
    served: list[int] = []
    backend = make.FakeBackend(lambda index: served.append(index) or make.steady(0.1, 0.02, 5))
    seen: list[list[int]] = []
    serve(make, backend, warmup=2, num_requests=4, on_warm=lambda: seen.append(list(served)))
    assert seen == [[0, 1]]
    assert len(served) == 6


def test_failed_warmup_is_not_counted(make):
    backend = make.FakeBackend(
        lambda index: make.Script((), OSError("x")) if index == 0 else make.steady(0.1, 0.1, 5)
    )
    record = serve(make, backend, warmup=2)
    assert record.num_warmup_requests == 1
    assert all(r.error is None for r in record.requests)


def test_failure_in_the_middle_is_a_record_and_the_others_go_on(make):
    broken = make.Script(((0.1, 1), (0.1, 1)), RuntimeError("the engine fell over"))
    backend = make.FakeBackend(lambda index: broken if index == 2 else make.steady(0.1, 0.1, 5))
    record = serve(make, backend)
    failed = record.requests[2]
    assert failed.error == "RuntimeError: the engine fell over"
    assert (failed.num_output_tokens, failed.done_s) == (2, None)
    assert failed.first_token_s is not None
    assert [r.error for i, r in enumerate(record.requests) if i != 2] == [None] * 5
    assert backend.open_streams == 0


def test_silence_is_given_up_and_the_stream_closed(make):
    hung = make.Script(((0.1, 1), (1e6, 1)))
    backend = make.FakeBackend(lambda index: hung if index == 0 else make.steady(0.1, 0.1, 5))
    record = serve(make, backend, concurrency=1, num_requests=2, idle_timeout_s=30)
    assert record.requests[0].error == "the stream was silent for 30 s"
    assert record.requests[0].num_output_tokens == 1
    assert record.requests[1].error is None
    assert record.requests[1].scheduled_s == pytest.approx(30.1)
    assert backend.open_streams == 0


def test_a_slow_stream_is_not_a_silent_one(make):
    backend = make.FakeBackend(lambda index: make.steady(20, 20, 5))
    record = serve(make, backend, num_requests=1, idle_timeout_s=30)
    assert record.requests[0].error is None
    assert record.requests[0].last_token_s == pytest.approx(100)


def test_timeout_of_the_backend_is_told_from_ours(make):
    backend = make.FakeBackend(lambda index: make.Script(((0.1, 1),), TimeoutError("socket")))
    record = serve(make, backend, num_requests=1)
    assert record.requests[0].error == "TimeoutError: socket"


def test_empty_stream_is_an_error(make):
    backend = make.FakeBackend(lambda index: make.Script(()))
    record = serve(make, backend, num_requests=1)
    assert record.requests[0].error == "the stream ended without a token"
    assert record.requests[0].first_token_s is None


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
    record = serve(make, backend, concurrency=3, num_requests=9)
    assert record.step_stats["client_mean_in_flight"] == pytest.approx(3, rel=0.02)
    assert record.step_stats["client_num_ticks"] == pytest.approx(135, abs=3)
    assert record.max_client_lag_s == pytest.approx(0, abs=1e-9)


def test_cancelling_the_run_cancels_every_request(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 10, 5))

    async def cancelled(loop: Any) -> int:
        plan = RunPlan((), tuple(PlannedRequest((i,), 5) for i in range(6)), 4)
        task = asyncio.create_task(run_load(backend, plan, repeat=0, seed=0, clock=loop.time))
        await asyncio.sleep(5)
        open_before = backend.open_streams
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return open_before

    assert make.run_virtual(cancelled) == 4
    assert backend.open_streams == 0


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_reaches_the_caller_with_every_stream_closed(make):
    def script(index: int) -> Any:
        if index == 3:
            signal.raise_signal(signal.SIGINT)
        return make.steady(0.1, 0.1, 5)

    backend = make.FakeBackend(script)
    with pytest.raises(KeyboardInterrupt):
        serve(make, backend)
    assert backend.open_streams == 0


def test_an_open_loop_sends_what_is_due_whatever_became_of_the_rest(make):
    backend = make.FakeBackend(lambda index: make.steady(10, 0.1, 5))
    plan = RunPlan((), planned(0.5, 1.0, 1.25), concurrency=1)
    record = run(make, backend, plan)
    assert [r.scheduled_s for r in record.requests] == [0.5, 1.0, 1.25]
    assert [r.sent_s for r in record.requests] == pytest.approx([0.5, 1.0, 1.25])
    assert [ttft_s(r) for r in record.requests] == pytest.approx([10, 10, 10])
    assert record.duration_s == pytest.approx(11.65)


def test_requests_are_sent_in_the_order_of_their_times_and_recorded_in_the_plans(make):
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5))
    record = run(make, backend, RunPlan((), planned(2.0, 0.0, 1.0), concurrency=1))
    assert [prompt[0] for prompt, _ in backend.asked] == [1, 2, 0]
    assert [r.scheduled_s for r in record.requests] == [2.0, 0.0, 1.0]


def test_latency_counts_from_the_schedule_when_the_client_is_late(make):
    class SlowBackend(make.FakeBackend):
        loop: Any = None

        def stream(self, prompt, params):
            self.loop.now_s += 1.0  # work that blocks the client's event loop
            return super().stream(prompt, params)

    backend = SlowBackend(lambda index: make.steady(0.5, 0.1, 5))
    plan = RunPlan((), planned(0.0, 0.1), concurrency=1)

    async def main(loop: Any) -> RunRecord:
        backend.loop = loop
        return await run_load(backend, plan, repeat=0, seed=0, clock=loop.time)

    late = make.run_virtual(main).requests[1]
    assert (late.scheduled_s, late.sent_s) == pytest.approx((0.1, 1.0))
    assert ttft_s(late) == pytest.approx(0.9 + 1.0 + 0.5)


@pytest.mark.parametrize("due_s", [None, 0.5])
def test_a_turn_waits_for_the_one_before_and_the_pause(make, due_s):
    backend = make.FakeBackend(lambda index: make.steady(0.2, 0.1, 5))
    turns = tuple(
        PlannedRequest((turn,), 5, due_s if turn == 0 else None, "a", turn, 2.0 if turn else 0.0)
        for turn in range(3)
    )
    other = PlannedRequest((9,), 5, None if due_s is None else 0.7, "b", 0)
    record = run(make, backend, RunPlan((), (*turns, other), concurrency=1))
    first, second, third, single = record.requests
    assert second.scheduled_s == pytest.approx(first.done_s + 2)
    assert third.scheduled_s == pytest.approx(second.done_s + 2)
    assert [r.turn for r in record.requests] == [0, 1, 2, 0]
    assert {r.conversation for r in record.requests} == {"a", "b"}
    # a closed loop has one user, who talks on; an open one does not wait
    assert single.scheduled_s == pytest.approx(0.7 if due_s else third.done_s)


def test_a_failed_turn_does_not_end_the_conversation(make):
    broken = make.Script((), OSError("x"))
    backend = make.FakeBackend(lambda index: make.steady(0.1, 0.1, 5) if index else broken)
    turns = tuple(PlannedRequest((turn,), 5, None, "a", turn) for turn in range(2))
    record = run(make, backend, RunPlan((), turns, concurrency=1))
    assert [r.error for r in record.requests] == ["OSError: x", None]


def test_what_was_asked_is_recorded_beside_what_came(make):
    backend = make.FakeBackend(lambda index: make.Script(((0.1, 5),), num_prompt_tokens=2))
    request = serve(make, backend, num_requests=1, output_tokens=7).requests[0]
    assert (request.num_prompt_tokens_sent, request.num_prompt_tokens) == (3, 2)
    assert (request.max_tokens, request.num_output_tokens) == (7, 5)
