from typing import Any

import pytest

from llmopt.engine.block_space import BlockSpace
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.policies import make_policy
from llmopt.engine.request import Request, RequestStatus, StepOutput
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import Scheduler, SchedulerOutput
from llmopt.errors import EngineError, UsageError


def make_scheduler(
    num_blocks: int = 100,
    *,
    block_size: int = 4,
    caching: bool = False,
    hosts: int = 0,
    **more: Any,
) -> Scheduler:
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 100, **more}
    blocks = BlockSpace(
        [LayerGroup((0,))],
        [num_blocks],
        block_size=block_size,
        max_chunk=limits["max_num_batched_tokens"],
        num_host_blocks=[hosts] if hosts else [],
        prefix_caching=caching,
    )
    return Scheduler(blocks, **limits)


def add(
    scheduler: Scheduler,
    request_id: str,
    num_prompt_tokens: int,
    max_tokens: int = 8,
    **more: Any,
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    tokens = [5] * num_prompt_tokens
    request = Request(request_id, tokens, num_prompt_tokens, params, max_tokens, seed=0, **more)
    scheduler.add(request)
    return request


def plan(output: SchedulerOutput) -> list[tuple[str, int, int, bool]]:
    return [
        (item.request.request_id, item.start, item.num_scheduled_tokens, item.samples)
        for item in output.scheduled
    ]


def finish_step(scheduler: Scheduler, output: SchedulerOutput) -> list[StepOutput]:
    outputs = scheduler.update(output, [[9] for item in output.scheduled if item.samples])
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
    assert (plan(output), output.counts.num_preemptions) == ([("first", 7, 1, True)], 1)
    assert last.status is RequestStatus.WAITING
    assert (last.num_computed_tokens, last.num_preemptions, last.block_tables) == (0, 1, ())
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
    assert (plan(output), output.counts.num_preemptions) == ([("a", 8, 1, True)], 1)
    assert scheduler.blocks.groups[0].pool.num_free_blocks == 1
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
    assert scheduler.blocks.num_used_blocks == 0
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
    assert scheduler.blocks.num_used_blocks == 0
    if output is not None:
        assert scheduler.update(output, [[9]]) == []
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


def test_update_wants_tokens_for_requests_that_sample_only() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", 2)
    with pytest.raises(AssertionError, match="sampled tokens are of requests that sample"):
        scheduler.update(scheduler.schedule(), [[9], [9]])


def test_several_tokens_of_one_step_end_where_the_request_ends() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", 2, max_tokens=4)
    finish_step(scheduler, scheduler.schedule())
    outputs = scheduler.update(scheduler.schedule({"a": (6, 7, 8, 9)}), [[6, 7, 1]])
    assert outputs == [StepOutput("a", (6, 7, 1), "length")]
    assert request.output_token_ids == [9, 6, 7, 1]
    scheduler.check_invariants()


def test_a_prompt_leaves_a_token_to_each_request_behind_it() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10, policy=make_policy("priority"))
    add(scheduler, "a", 2)
    add(scheduler, "b", 2)
    finish_step(scheduler, scheduler.schedule())
    add(scheduler, "urgent", 40, priority=-1)
    plans = []
    for _ in range(3):
        output = scheduler.schedule()
        plans.append([item[:3] for item in plan(output)])
        finish_step(scheduler, output)
    assert plans == [
        [("a", 2, 1), ("b", 2, 1), ("urgent", 0, 8)],
        [("urgent", 8, 8), ("a", 3, 1), ("b", 3, 1)],
        [("urgent", 16, 8), ("a", 4, 1), ("b", 4, 1)],
    ]


def test_max_prefill_chunk_shares_a_step_between_prompts() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10, max_prefill_chunk=4)
    add(scheduler, "long", 40)
    add(scheduler, "short", 4)
    assert plan(scheduler.schedule()) == [("long", 0, 4, False), ("short", 0, 4, True)]


class TestPriority:
    def test_smaller_numbers_go_first_and_ties_by_arrival(self) -> None:
        scheduler = make_scheduler(max_num_seqs=1, policy=make_policy("priority"))
        for request_id, priority in [("b", 1), ("c", 1), ("a", 0), ("z", -1)]:
            add(scheduler, request_id, 2, max_tokens=1, priority=priority)
        order = [finish_step(scheduler, scheduler.schedule())[0].request_id for _ in range(4)]
        assert order == ["z", "a", "b", "c"]

    def test_first_come_first_served_ignores_priorities(self) -> None:
        scheduler = make_scheduler(max_num_seqs=1)
        for request_id, priority in [("b", 1), ("a", 0)]:
            add(scheduler, request_id, 2, max_tokens=1, priority=priority)
        assert plan(scheduler.schedule())[0][0] == "b"

    def test_preemption_takes_the_worst_priority_and_not_the_last_arrival(self) -> None:
        scheduler = make_scheduler(num_blocks=4, policy=make_policy("priority"))
        humble = add(scheduler, "humble", 7, priority=1)
        finish_step(scheduler, scheduler.schedule())
        add(scheduler, "urgent", 8, priority=0)
        finish_step(scheduler, scheduler.schedule())
        output = scheduler.schedule()  # "urgent" needs a third block
        assert plan(output) == [("urgent", 8, 1, True)]
        assert humble.status is RequestStatus.WAITING
        assert humble.output_token_ids == [9, 9]

    def test_waiting_counts_so_nobody_starves(self) -> None:
        """A stream of urgent requests overtakes for (difference in priority) * aging steps only."""
        scheduler = make_scheduler(max_num_seqs=1, policy=make_policy("priority", aging_steps=5))
        add(scheduler, "first", 2, max_tokens=1)
        add(scheduler, "humble", 2, max_tokens=1, priority=2)
        order: list[str] = []
        while "humble" not in order:
            order.append(finish_step(scheduler, scheduler.schedule())[0].request_id)
            add(scheduler, f"urgent {len(order)}", 2, max_tokens=1)
        assert len(order) == 1 + 2 * 5


class TestStatic:
    def make(self, **more: Any) -> Scheduler:
        return make_scheduler(policy=make_policy("static"), **more)

    def test_nobody_joins_before_the_batch_has_ended(self) -> None:
        scheduler = self.make(max_num_seqs=2)
        for request_id, max_tokens in [("a", 1), ("b", 4), ("c", 1)]:
            add(scheduler, request_id, 2, max_tokens=max_tokens)
        batches = []
        while scheduler.has_unfinished():
            output = scheduler.schedule()
            batches.append([item[0] for item in plan(output)])
            finish_step(scheduler, output)
        assert batches == [["a", "b"], ["b"], ["b"], ["b"], ["c"]]

    def test_each_member_reserves_its_full_length_at_its_start(self) -> None:
        scheduler = self.make()
        request = add(scheduler, "a", 5, max_tokens=20)  # 24 slots are written
        finish_step(scheduler, scheduler.schedule())
        assert len(request.block_tables[0]) == 6
        assert scheduler.blocks.num_used_blocks == 6

    def test_a_batch_is_formed_whole_even_when_its_prompts_exceed_a_step(self) -> None:
        scheduler = self.make(max_num_batched_tokens=4)
        for request_id in "ab":
            add(scheduler, request_id, 4, max_tokens=2)
        output = scheduler.schedule()
        assert [item[0] for item in plan(output)] == ["a"]
        assert [request.request_id for request in scheduler.running] == ["a", "b"]
        finish_step(scheduler, output)
        assert plan(scheduler.schedule()) == [("a", 4, 1, True), ("b", 0, 3, False)]


class TestSwap:
    def preempted(self, hosts: int) -> tuple[Scheduler, Request, SchedulerOutput]:
        scheduler = make_scheduler(num_blocks=4, hosts=hosts, preemption="swap")
        add(scheduler, "first", 7)
        last = add(scheduler, "last", 8)
        finish_step(scheduler, scheduler.schedule())
        output = scheduler.schedule()
        return scheduler, last, output

    def test_blocks_go_to_the_host_and_come_back(self) -> None:
        scheduler, last, output = self.preempted(hosts=2)
        assert len(output.swap_outs) == 2
        assert (last.num_computed_tokens, last.block_tables) == (8, ())
        finish_step(scheduler, output)
        while not output.swap_ins:
            output = scheduler.schedule()
            finish_step(scheduler, output)
        assert output.counts.num_recovered_tokens == 8
        assert plan(output) == [("last", 8, 1, True)]
        back = {(move.source, move.destination) for move in output.swap_ins}
        assert len(back) == 2
        assert scheduler.blocks.groups[0].host_pool is not None
        assert scheduler.blocks.groups[0].host_pool.num_used_blocks == 0

    def test_without_room_on_the_host_it_is_recomputed(self) -> None:
        scheduler, last, output = self.preempted(hosts=1)
        assert (output.swap_outs, output.counts.num_preemptions) == ((), 1)
        assert last.num_computed_tokens == 0
        finish_step(scheduler, output)

    def test_abort_frees_the_host(self) -> None:
        scheduler, _, output = self.preempted(hosts=2)
        finish_step(scheduler, output)
        assert scheduler.abort("last")
        scheduler.check_invariants()
        assert scheduler.blocks.groups[0].host_pool is not None
        assert scheduler.blocks.groups[0].host_pool.num_used_blocks == 0


class TestForks:
    def test_samples_share_full_blocks_and_copy_the_last(self) -> None:
        scheduler = make_scheduler()
        parent = add(scheduler, "a", 10)
        child = add(scheduler, "b", 10, parent=parent)
        output = scheduler.schedule()
        assert plan(output) == [("a", 0, 10, True)]  # the prompt is computed once
        finish_step(scheduler, output)
        output = scheduler.schedule()
        assert plan(output) == [("a", 10, 1, True), ("b", 9, 1, True)]
        assert output.counts.num_forks == 1
        (copy,) = output.copies
        mine, theirs = child.block_tables[0], parent.block_tables[0]
        assert mine[:2] == theirs[:2]
        assert (copy.source, copy.destination) == (theirs[2], mine[2])
        assert mine[2] != theirs[2]

    def test_nothing_is_copied_where_the_prompt_ends_with_a_block(self) -> None:
        scheduler = make_scheduler()
        parent = add(scheduler, "a", 9)  # the last token is computed by each sample
        add(scheduler, "b", 9, parent=parent)
        finish_step(scheduler, scheduler.schedule())
        output = scheduler.schedule()
        assert output.counts.num_forks == 1
        assert output.copies == ()

    def test_others_are_not_held_up_while_the_prompt_is_computed(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=6)
        parent = add(scheduler, "a", 8)
        add(scheduler, "b", 8, parent=parent)
        add(scheduler, "c", 2)
        finish_step(scheduler, scheduler.schedule())
        assert [item[0] for item in plan(scheduler.schedule())] == ["a", "c"]

    def test_a_sample_whose_parent_is_gone_computes_the_prompt(self) -> None:
        scheduler = make_scheduler()
        parent = add(scheduler, "a", 10)
        add(scheduler, "b", 10, parent=parent)
        finish_step(scheduler, scheduler.schedule())
        scheduler.abort("a")
        assert plan(scheduler.schedule()) == [("b", 0, 10, True)]


def test_a_draft_gets_what_is_left_and_takes_no_block_of_those_behind_it() -> None:
    scheduler = make_scheduler(num_blocks=4)
    add(scheduler, "a", 4)
    add(scheduler, "b", 4)
    finish_step(scheduler, scheduler.schedule())
    drafts = {"a": (9, 9, 9, 9), "b": (9, 9, 9)}  # the first wants a third block
    output = scheduler.schedule(drafts)
    assert plan(output) == [("a", 4, 1, True), ("b", 4, 4, True)]
    assert output.counts.num_preemptions == 0
    assert [item.draft_token_ids for item in output.scheduled] == [(), (9, 9, 9)]


def test_a_request_that_samples_and_gets_no_token_ends_in_an_error() -> None:
    scheduler = make_scheduler()
    for name in "ab":
        add(scheduler, name, 4)
    finish_step(scheduler, scheduler.schedule())
    failed, other = scheduler.update(scheduler.schedule(), [(), (9,)])
    assert (failed.token_ids, failed.finish_reason) == ((), "error")
    assert (other.token_ids, other.finish_reason) == ((9,), None)
    scheduler.check_invariants()
    assert [request.request_id for request in scheduler.running] == ["b"]
    assert scheduler.blocks.num_used_blocks == 2
