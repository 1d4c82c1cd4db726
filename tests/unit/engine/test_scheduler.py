from typing import Any

import pytest

from llmopt.engine.block_pool import BlockPool
from llmopt.engine.request import Request, RequestStatus, SamplingParams, StepOutput
from llmopt.engine.scheduler import Scheduler, SchedulerOutput
from llmopt.errors import EngineError, UsageError


def make_scheduler(num_blocks: int = 100, **limits: Any) -> Scheduler:
    defaults = {
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 100,
    }
    return Scheduler(BlockPool(num_blocks), **{**defaults, **limits})


def add(
    scheduler: Scheduler, request_id: str, num_prompt_tokens: int, max_tokens: int = 8
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    tokens = [5] * num_prompt_tokens
    request = Request(request_id, tokens, num_prompt_tokens, params, max_tokens, seed=0)
    scheduler.add(request)
    return request


def plan(output: SchedulerOutput) -> list[tuple[str, int, int, bool]]:
    return [
        (item.request.request_id, item.start, item.num_scheduled_tokens, item.samples)
        for item in output.scheduled
    ]


def finish_step(scheduler: Scheduler, output: SchedulerOutput) -> list[StepOutput]:
    outputs = scheduler.update(output, [9 for item in output.scheduled if item.samples])
    scheduler.check_invariants()
    return outputs


def test_prompts_and_decodes_share_one_step() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", 6)
    finish_step(scheduler, scheduler.schedule())
    add(scheduler, "b", 3)
    assert plan(scheduler.schedule()) == [("a", 6, 1, True), ("b", 0, 3, True)]


def test_a_long_prompt_is_computed_in_chunks_beside_the_decodes() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=5)
    add(scheduler, "a", 2)
    add(scheduler, "b", 9)
    plans = []
    for _ in range(4):
        output = scheduler.schedule()
        assert output.num_scheduled_tokens <= 5
        plans.append(plan(output))
        finish_step(scheduler, output)
    assert plans == [
        [("a", 0, 2, True), ("b", 0, 3, False)],
        [("a", 2, 1, True), ("b", 3, 4, False)],
        [("a", 3, 1, True), ("b", 7, 2, True)],
        [("a", 4, 1, True), ("b", 9, 1, True)],
    ]


def test_a_chunk_that_samples_nothing_yields_no_output() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    add(scheduler, "a", 6)
    assert finish_step(scheduler, scheduler.schedule()) == []
    assert finish_step(scheduler, scheduler.schedule()) == [StepOutput("a", (9,))]


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in "abc":
        add(scheduler, request_id, 2, max_tokens=1)
    output = scheduler.schedule()
    assert [item[0] for item in plan(output)] == ["a", "b"]
    finish_step(scheduler, output)
    assert [item[0] for item in plan(scheduler.schedule())] == ["c"]


def test_a_large_prompt_at_the_head_is_not_overtaken() -> None:
    scheduler = make_scheduler(num_blocks=5)
    add(scheduler, "a", 8, max_tokens=2)  # 2 blocks, then 3
    add(scheduler, "large", 15, max_tokens=1)  # 4 blocks
    add(scheduler, "small", 1, max_tokens=1)
    output = scheduler.schedule()
    assert [item[0] for item in plan(output)] == ["a"]
    finish_step(scheduler, output)
    finish_step(scheduler, scheduler.schedule())
    assert [item[0] for item in plan(scheduler.schedule())] == ["large", "small"]


def test_preemption_takes_the_last_request_keeps_its_tokens_and_admits_nothing() -> None:
    scheduler = make_scheduler(num_blocks=4)
    first = add(scheduler, "first", 7)
    last = add(scheduler, "last", 8)
    finish_step(scheduler, scheduler.schedule())  # 2 + 2 blocks
    output = scheduler.schedule()  # "last" needs a third block; nobody comes after it
    assert (plan(output), output.num_preemptions) == ([("first", 7, 1, True)], 1)
    assert last.status is RequestStatus.WAITING
    assert (last.num_computed_tokens, last.num_preemptions, last.block_table) == (0, 1, [])
    assert last.output_token_ids == [9]
    finish_step(scheduler, output)
    while first.status is not RequestStatus.FINISHED:
        finish_step(scheduler, scheduler.schedule())
    output = scheduler.schedule()
    assert plan(output) == [("last", 0, 9, True)]  # recomputes the token that it had generated
    assert finish_step(scheduler, output) == [StepOutput("last", (9,), None, num_preemptions=1)]
    assert last.output_token_ids == [9, 9]


def test_nothing_is_admitted_in_a_step_that_preempted() -> None:
    scheduler = make_scheduler(num_blocks=4, max_num_seqs=3)
    add(scheduler, "a", 8)
    add(scheduler, "b", 7)
    finish_step(scheduler, scheduler.schedule())
    add(scheduler, "c", 1)
    output = scheduler.schedule()  # "a" takes the blocks of "b"; one stays free, enough for "c"
    assert (plan(output), output.num_preemptions) == ([("a", 8, 1, True)], 1)
    assert scheduler.block_pool.num_free_blocks == 1
    assert [request.request_id for request in scheduler.waiting] == ["b", "c"]


def test_preempted_requests_queue_in_their_old_order() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2)
    add(scheduler, "a", 4, max_tokens=3)
    add(scheduler, "b", 2, max_tokens=2)
    add(scheduler, "c", 2, max_tokens=2)
    add(scheduler, "d", 2, max_tokens=2)
    finish_step(scheduler, scheduler.schedule())
    finish_step(scheduler, scheduler.schedule())
    assert [request.request_id for request in scheduler.waiting] == ["b", "c", "d"]


def test_finished_requests_give_their_blocks_back() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", 9, max_tokens=1)
    outputs = finish_step(scheduler, scheduler.schedule())
    assert outputs == [StepOutput("a", (9,), "length")]
    assert request.finish_reason == "length"
    assert scheduler.block_pool.num_used_blocks == 0
    assert not scheduler.has_unfinished()


@pytest.mark.parametrize("when", ["waiting", "in a chunk", "decoding", "during a step"])
def test_abort_frees_everything_in_each_state(when: str) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    request = add(scheduler, "a", 6)
    num_steps = {"waiting": 0, "in a chunk": 1, "decoding": 3, "during a step": 2}[when]
    for _ in range(num_steps):
        finish_step(scheduler, scheduler.schedule())
    output = scheduler.schedule() if when == "during a step" else None
    assert scheduler.abort("a")
    assert scheduler.block_pool.num_used_blocks == 0
    if output is not None:
        assert scheduler.update(output, [9]) == []
    scheduler.check_invariants()
    assert (request.status, request.finish_reason) == (RequestStatus.FINISHED, "abort")
    assert not scheduler.has_unfinished()
    assert not scheduler.abort("a")
    assert scheduler.schedule().scheduled == ()


def test_a_request_id_in_use_is_refused() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", 2)
    with pytest.raises(UsageError, match="'a' is already in use"):
        add(scheduler, "a", 2)


def test_a_refused_request_leaves_no_trace() -> None:
    scheduler = make_scheduler(num_blocks=2)
    with pytest.raises(EngineError):
        add(scheduler, "a", 30)
    assert not scheduler.has_unfinished()
    add(scheduler, "a", 2, max_tokens=2)


def test_update_wants_one_token_for_each_request_that_samples() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", 2)
    with pytest.raises(AssertionError, match="one sampled token"):
        scheduler.update(scheduler.schedule(), [9, 9])
