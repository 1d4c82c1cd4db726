"""The scheduler under random arrivals, aborts and limits, driving a model made of a dictionary.

The fake cache remembers which token was written into which slot of which layer group, and the fake
model reads a request's past through its block tables only: all of it in a group without a window,
the window and the sinks in the others. Its next token is a hash of what it read, so a token that
was lost, repeated, freed too early, or read from a block of another request changes everything
after it. Prompts are pieces of one text, so that prefixes meet.
"""

import random
from collections import Counter
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmopt.engine.block_space import BlockMove, BlockSpace
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.policies import PolicyName, make_policy
from llmopt.engine.prefix_cache import HashBlock, hash_block
from llmopt.engine.request import Request, RequestStatus
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.scheduler import ScheduledRequest, Scheduler, SchedulerOutput
from llmopt.errors import EngineError

MAX_MODEL_LEN = 40
EOS = 1
TEXT = [(i * i + i // 3) % 5 + 2 for i in range(MAX_MODEL_LEN)]
FULL = LayerGroup((0,))
GROUPS = [
    [FULL],
    [FULL, LayerGroup((1,), window=5)],
    [LayerGroup((0,), window=3)],
    [LayerGroup((0,), window=4, num_sinks=3), LayerGroup((1,), window=2)],
]

Tokens = list[int]
Slots = dict[int, int]


def seen(group: LayerGroup, position: int) -> list[int]:
    first = 0 if group.window is None else max(0, position - group.window + 1)
    return [p for p in range(position + 1) if p >= first or p < group.num_sinks]


def next_token(groups: list[LayerGroup], tokens: Tokens) -> int:
    last = len(tokens) - 1
    return crc32(bytes(tokens[p] for group in groups for p in seen(group, last))) % 9


def expected_output(groups: list[LayerGroup], request: Request) -> Tokens:
    tokens = request.prompt_token_ids
    num_prompt_tokens = len(tokens)
    while len(tokens) - num_prompt_tokens < request.max_tokens:
        tokens.append(next_token(groups, tokens))
        if tokens[-1] == EOS and not request.params.ignore_eos:
            break
    return tokens[num_prompt_tokens:]


def collide(_parent: int, _tokens: tuple[int, ...], _salt: str) -> int:
    return 0


def tokens_of(item: ScheduledRequest) -> Tokens:
    return [*item.request.token_ids, *item.draft_token_ids]


class FakeCache:
    """Slots of the device and of the host for each group."""

    def __init__(self, num_groups: int, block_size: int) -> None:
        self.block_size = block_size
        self.device: list[Slots] = [{} for _ in range(num_groups)]
        self.host: list[Slots] = [{} for _ in range(num_groups)]

    def move_all(self, output: SchedulerOutput) -> None:
        self.move(self.device, self.host, output.swap_outs)
        self.move(self.device, self.device, output.copies)
        self.move(self.host, self.device, output.swap_ins)

    def move(
        self, sources: list[Slots], targets: list[Slots], moves: tuple[BlockMove, ...]
    ) -> None:
        read = [
            {
                move.destination * self.block_size + offset: slots[slot]
                for offset in range(self.block_size)
                if (slot := move.source * self.block_size + offset) in slots
            }
            for move in moves
            for slots in [sources[move.group]]
        ]
        for move, content in zip(moves, read, strict=True):
            targets[move.group].update(content)

    def slot(self, item: ScheduledRequest, group: int, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        block_id = item.request.block_tables[group][block]
        assert block_id is not None, "what is read or written is held"
        return block_id * self.block_size + offset


@dataclass(frozen=True)
class Spec:
    prompt: Tokens
    max_tokens: int
    ignore_eos: bool
    priority: int
    salt: str
    n: int


def make_spec(start: int, length: int, tail: Tokens, **rest: Any) -> Spec:
    return Spec(prompt=[*TEXT[start : start + length], *tail], **rest)


def specs() -> st.SearchStrategy[Spec]:
    return st.builds(
        make_spec,
        start=st.sampled_from([0, 0, 0, 7]),
        length=st.integers(0, MAX_MODEL_LEN - 10),
        tail=st.lists(st.integers(2, 4), min_size=1, max_size=3),
        max_tokens=st.integers(1, 30),
        ignore_eos=st.sampled_from([True, True, False]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "other"]),
        n=st.sampled_from([1, 1, 3]),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and go; `streamed` is what their consumers have seen."""

    @initialize(data=st.data())
    def make_scheduler(self, data: st.DataObject) -> None:
        policy = data.draw(st.sampled_from(["fcfs", "priority", "static"]))
        groups = [FULL] if policy == "static" else data.draw(st.sampled_from(GROUPS))
        self.start(
            groups,
            policy,
            block_size=data.draw(st.integers(1, 4)),
            budget=data.draw(st.integers(1, 24)),
            chunk=data.draw(st.sampled_from([1, 3, None])),
            max_num_seqs=data.draw(st.integers(2, 6)),
            num_blocks=[data.draw(st.integers(6, 16)) for _ in groups],
            num_host_blocks=data.draw(st.sampled_from([(), (8,) * len(groups)])),
            prefix_caching=data.draw(st.booleans()),
            hash_function=data.draw(st.sampled_from([hash_block, collide])),
        )

    def start(
        self,
        groups: list[LayerGroup],
        policy: PolicyName,
        *,
        block_size: int,
        budget: int,
        chunk: int | None,
        max_num_seqs: int,
        num_blocks: list[int],
        num_host_blocks: tuple[int, ...],
        prefix_caching: bool,
        hash_function: HashBlock,
    ) -> None:
        self.groups = groups
        blocks = BlockSpace(
            groups,
            num_blocks,
            block_size=block_size,
            max_chunk=min(budget, chunk or budget),
            num_host_blocks=num_host_blocks,
            prefix_caching=prefix_caching,
            hash_function=hash_function,
        )
        self.scheduler = Scheduler(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=MAX_MODEL_LEN,
            max_prefill_chunk=chunk,
            policy=make_policy(policy, aging_steps=10),
            preemption="swap" if num_host_blocks else "recompute",
        )
        self.cache = FakeCache(len(groups), block_size)
        self.requests: dict[str, Request] = {}
        self.streamed: dict[str, list[int]] = {}
        self.num_added = 0
        self.counts: Counter[str] = Counter()

    @rule(specs=st.lists(specs(), min_size=1, max_size=4))
    def add(self, specs: list[Spec]) -> None:
        for spec in specs:
            self.add_samples(spec)

    def add_samples(self, spec: Spec) -> None:
        parent = None
        for _ in range(spec.n):
            request = Request(
                str(self.num_added),
                list(spec.prompt),
                len(spec.prompt),
                SamplingParams(max_tokens=spec.max_tokens, ignore_eos=spec.ignore_eos),
                spec.max_tokens,
                seed=0,
                eos_token_ids=(EOS,),
                priority=spec.priority,
                cache_salt=spec.salt,
                parent=parent,
            )
            parent = parent or request
            self.num_added += 1
            self.add_one(request)

    def add_one(self, request: Request) -> None:
        blocks = self.scheduler.blocks
        num_prompt_tokens = request.num_prompt_tokens
        clipped = min(request.max_tokens, MAX_MODEL_LEN - num_prompt_tokens)
        fits = clipped >= 1 and all(
            blocks.max_held_blocks(group, num_prompt_tokens + clipped - 1) <= group.pool.num_blocks
            for group in blocks.groups
        )
        try:
            self.scheduler.add(request)
        except EngineError:
            assert not fits
        else:
            assert fits
            self.requests[request.request_id] = request
            self.streamed[request.request_id] = []

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.drop(request_id)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.run_step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), num_steps=st.integers(1, 4))
    def step_with_drafts(self, data: st.DataObject, num_steps: int) -> None:
        """Drafts that are right, or wrong from some token on, also of requests that cannot use
        them.
        """
        for _ in range(num_steps):
            drafts = {}
            for name, request in self.requests.items():
                tokens = list(request.token_ids)
                for _ in range(data.draw(st.integers(0, 8))):
                    tokens.append(next_token(self.groups, tokens))
                draft = tokens[request.num_tokens :]
                wrong = data.draw(st.integers(0, 8))
                draft[wrong:] = [(token + 1) % 9 for token in draft[wrong:]]
                drafts[name] = tuple(draft)
            self.run_step(drafts=drafts)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort_during_a_step(self, data: st.DataObject) -> None:
        self.run_step(aborted=data.draw(st.sampled_from(sorted(self.requests))))

    @invariant()
    def laws_hold(self) -> None:
        self.scheduler.check_invariants()
        assert set(self.scheduler.requests) == set(self.requests)

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            self.finish()

    def finish(self) -> None:
        """Everything that was added comes to its end, in a bounded number of steps."""
        # Nobody preempts the running request of the best rank; it can be outranked once by each.
        for _ in range((2 * len(self.requests) + 1) * MAX_MODEL_LEN):
            if not self.scheduler.has_unfinished():
                break
            self.run_step()
        assert not self.scheduler.has_unfinished()
        assert self.scheduler.blocks.num_used_blocks == 0
        for group in self.scheduler.blocks.groups:
            assert group.host_pool is None or group.host_pool.num_used_blocks == 0

    def drop(self, request_id: str) -> None:
        assert self.scheduler.abort(request_id)
        del self.requests[request_id]

    def run_step(
        self, aborted: str | None = None, drafts: dict[str, tuple[int, ...]] | None = None
    ) -> None:
        output = self.scheduler.schedule(drafts)
        for item in output.scheduled:
            draft = (drafts or {}).get(item.request.request_id, ())
            assert item.draft_token_ids == draft[: len(item.draft_token_ids)]
            assert item.samples or not item.draft_token_ids
            assert item.request.num_output_tokens + len(item.draft_token_ids) < (
                item.request.max_tokens
            )
        num_tokens = output.num_scheduled_tokens
        self.counts.update(asdict(output.counts))
        self.counts["swap_outs"] += len(output.swap_outs)
        self.counts["swap_ins"] += len(output.swap_ins)
        self.counts["copies"] += len(output.copies)
        assert num_tokens <= self.scheduler.max_num_batched_tokens
        assert (num_tokens >= 1) == bool(self.requests)
        self.check_written_blocks()
        sampled = self.compute(output)
        if aborted is not None:
            self.drop(aborted)
        for out in self.scheduler.update(output, sampled):
            assert out.request_id != aborted
            self.streamed[out.request_id] += out.token_ids
            if out.finish_reason is not None:
                self.check_finished(self.requests.pop(out.request_id))
        self.scheduler.check_invariants()

    def check_written_blocks(self) -> None:
        """No block is in two tables from the first slot on that may be written."""
        for index in range(len(self.groups)):
            held = Counter(
                b for r in self.scheduler.running for b in r.block_tables[index] if b is not None
            )
            for request in self.scheduler.running:
                first = request.num_computed_tokens // self.cache.block_size
                for block_id in request.block_tables[index][first:]:
                    assert block_id is not None
                    assert held[block_id] == 1

    def compute(self, output: SchedulerOutput) -> list[Tokens]:
        self.cache.move_all(output)
        groups = list(enumerate(self.cache.device))
        for item in output.scheduled:
            for position in range(item.start, item.start + item.num_scheduled_tokens):
                for index, slots in groups:
                    slot = self.cache.slot(item, index, position)
                    slots[slot] = tokens_of(item)[position]
        sampled = []
        for item in output.scheduled:
            said = []
            for position in range(item.start, item.start + item.num_scheduled_tokens):
                past = [
                    slots[self.cache.slot(item, index, p)]
                    for index, slots in groups
                    for p in seen(self.groups[index], position)
                ]
                assert past == [
                    tokens_of(item)[p] for group in self.groups for p in seen(group, position)
                ]
                said.append(crc32(bytes(past)) % 9)
            if item.samples:
                said = said[item.num_known_tokens - 1 :]
                pairs = zip(item.draft_token_ids, said, strict=False)
                num_taken = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                sampled.append(said[: num_taken + 1])
        return sampled

    def check_finished(self, request: Request) -> None:
        streamed = self.streamed[request.request_id]
        assert request.status is RequestStatus.FINISHED
        assert streamed == request.output_token_ids
        assert streamed == expected_output(self.groups, request)
        stopped = streamed[-1] == EOS and not request.params.ignore_eos
        assert request.finish_reason == ("stop" if stopped else "length")


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=2, max_size=6),
    block_size=st.integers(1, 4),
    num_blocks=st.integers(0, 8),
    draft_length=st.integers(1, 8),
)
def test_drafts_preempt_nobody(
    lengths: list[int], block_size: int, num_blocks: int, draft_length: int
) -> None:
    """Each step is held against the same one without drafts, in a pool that has `num_blocks` more
    than one request fills.
    """
    machine = SchedulerMachine()
    machine.start(
        [FULL],
        "fcfs",
        block_size=block_size,
        budget=64,
        chunk=None,
        max_num_seqs=6,
        num_blocks=[-(-MAX_MODEL_LEN // block_size) + num_blocks],
        num_host_blocks=(),
        prefix_caching=False,
        hash_function=hash_block,
    )
    for length in lengths:
        machine.add_samples(
            make_spec(0, length, [2], max_tokens=20, ignore_eos=True, priority=0, salt="", n=1)
        )
    for _ in range(20):
        alone = deepcopy(machine.scheduler).schedule()
        before = machine.counts["num_preemptions"]
        machine.run_step(drafts=dict.fromkeys(machine.requests, (9,) * draft_length))
        assert machine.counts["num_preemptions"] - before <= alone.counts.num_preemptions
    machine.finish()


CONFIGURATIONS: dict[str, tuple[list[LayerGroup], PolicyName]] = {
    "fcfs": ([FULL], "fcfs"),
    "priority": ([FULL], "priority"),
    "collisions": ([FULL], "priority"),
    "swap": ([FULL], "priority"),
    "windows": (GROUPS[1], "fcfs"),
    "windows, swap": (GROUPS[1], "fcfs"),
    "sinks": (GROUPS[3], "fcfs"),
    "static": ([FULL], "static"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_500_requests_in_a_pool_that_is_too_small(name: str) -> None:
    """Random lengths, priorities, forks and aborts: nothing is lost or repeated."""
    rng = random.Random(name)
    groups, policy = CONFIGURATIONS[name]
    machine = SchedulerMachine()
    hosts = (12,) * len(groups) if "swap" in name else ()
    machine.start(
        groups,
        policy,
        block_size=4,
        budget=24,
        chunk=None,
        max_num_seqs=6,
        num_blocks=[12] * len(groups),
        num_host_blocks=hosts,
        prefix_caching=True,
        hash_function=collide if name == "collisions" else hash_block,
    )
    while machine.num_added < 500:
        machine.add_samples(
            make_spec(
                rng.choice([0, 0, 7]),
                rng.randrange(MAX_MODEL_LEN - 10),
                [rng.randrange(2, 5) for _ in range(rng.randint(1, 3))],
                max_tokens=rng.randint(1, 30),
                ignore_eos=rng.random() < 0.7,
                priority=rng.randint(-1, 1),
                salt=rng.choice(["", "", "other"]),
                n=rng.choice([1, 1, 3]),
            )
        )
        if rng.random() < 0.5:
            machine.run_step()
        if machine.requests and rng.random() < 0.15:
            machine.drop(rng.choice(sorted(machine.requests)))
    machine.finish()
    counts = machine.counts
    assert counts["num_prefix_hit_tokens"] > 0
    assert counts["copies"] > 0
    if policy == "static":
        assert counts["num_preemptions"] == 0
        return
    assert counts["num_preemptions"] > 20
    assert counts["num_recovered_tokens"] > 0
    assert counts["num_forks"] > 0
    assert min(counts["swap_outs"], counts["swap_ins"]) > (10 if hosts else -1)
    windowed = any(group.window is not None for group in groups)
    assert (machine.scheduler.blocks.num_freed_window_blocks > 100) == windowed
