"""The scheduler under random arrivals, aborts and limits, driving a model made of a dictionary.

The fake cache remembers which token was written into which slot, and the fake model reads a
request's past through its block table only. Its next token is a hash of that past, so a token that
was lost, repeated, or read from a block of another request changes everything after it.
"""

from zlib import crc32

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmopt.engine.block_pool import BlockPool
from llmopt.engine.request import Request, RequestStatus, SamplingParams
from llmopt.engine.scheduler import ScheduledRequest, Scheduler, SchedulerOutput
from llmopt.errors import EngineError

MAX_MODEL_LEN = 40
EOS = 7


def next_token(past: list[int]) -> int:
    return crc32(bytes(past)) % 24


def expected_output(prompt: list[int], params: SamplingParams, max_tokens: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] == EOS and not params.ignore_eos:
            break
    return tokens[len(prompt) :]


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and go; `streamed` is what their consumers have seen."""

    @initialize(
        num_blocks=st.integers(2, 20),
        block_size=st.integers(1, 5),
        max_num_seqs=st.integers(1, 5),
        max_num_batched_tokens=st.integers(1, 24),
    )
    def make_scheduler(
        self, num_blocks: int, block_size: int, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        self.scheduler = Scheduler(
            BlockPool(num_blocks),
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=MAX_MODEL_LEN,
        )
        self.cache: dict[int, int] = {}
        self.requests: dict[str, Request] = {}
        self.streamed: dict[str, list[int]] = {}
        self.num_added = 0

    @rule(
        prompt=st.lists(st.integers(0, 23), min_size=1, max_size=MAX_MODEL_LEN),
        max_tokens=st.integers(1, 20),
        ignore_eos=st.booleans(),
    )
    def add(self, prompt: list[int], max_tokens: int, ignore_eos: bool) -> None:
        request_id = str(self.num_added)
        self.num_added += 1
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
        request = Request(
            request_id, list(prompt), len(prompt), params, max_tokens, 0, eos_token_ids=(EOS,)
        )
        clipped = min(max_tokens, MAX_MODEL_LEN - len(prompt))
        num_slots = self.scheduler.block_pool.num_blocks * self.scheduler.block_size
        try:
            self.scheduler.add(request)
        except EngineError:
            assert clipped < 1 or len(prompt) + clipped - 1 > num_slots
        else:
            assert clipped >= 1
            assert len(prompt) + clipped - 1 <= num_slots
            self.requests[request_id] = request
            self.streamed[request_id] = []

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
    @rule(data=st.data())
    def abort_during_a_step(self, data: st.DataObject) -> None:
        self.run_step(aborted=data.draw(st.sampled_from(sorted(self.requests))))

    @invariant()
    def laws_hold(self) -> None:
        self.scheduler.check_invariants()
        assert set(self.scheduler.requests) == set(self.requests)

    def teardown(self) -> None:
        """Everything that was added comes to its end, in a bounded number of steps."""
        if not hasattr(self, "scheduler"):
            return
        # The oldest request advances in every step, so this many steps are always enough.
        for _ in range(len(self.requests) * MAX_MODEL_LEN):
            self.run_step()
        assert not self.scheduler.has_unfinished()
        assert self.scheduler.block_pool.num_used_blocks == 0

    def drop(self, request_id: str) -> None:
        assert self.scheduler.abort(request_id)
        del self.requests[request_id]

    def run_step(self, aborted: str | None = None) -> None:
        output = self.scheduler.schedule()
        num_tokens = output.num_scheduled_tokens
        assert num_tokens <= self.scheduler.max_num_batched_tokens
        assert (num_tokens >= 1) == bool(self.requests)
        sampled = self.compute(output)
        if aborted is not None:
            self.drop(aborted)
        for out in self.scheduler.update(output, sampled):
            assert out.request_id != aborted
            self.streamed[out.request_id] += out.token_ids
            if out.finish_reason is not None:
                self.check_finished(self.requests.pop(out.request_id))
        self.scheduler.check_invariants()

    def compute(self, output: SchedulerOutput) -> list[int]:
        for item in output.scheduled:
            for position in range(item.start, item.start + item.num_scheduled_tokens):
                self.cache[self.slot(item, position)] = item.request.token_ids[position]
        sampled = []
        for item in output.scheduled:
            seq_len = item.start + item.num_scheduled_tokens
            past = [self.cache[self.slot(item, position)] for position in range(seq_len)]
            if item.samples:
                sampled.append(next_token(past))
        return sampled

    def slot(self, item: ScheduledRequest, position: int) -> int:
        block, offset = divmod(position, self.scheduler.block_size)
        return item.request.block_table[block] * self.scheduler.block_size + offset

    def check_finished(self, request: Request) -> None:
        streamed = self.streamed[request.request_id]
        assert request.status is RequestStatus.FINISHED
        assert streamed == request.output_token_ids
        expected = expected_output(request.prompt_token_ids, request.params, request.max_tokens)
        assert streamed == expected
        stopped = streamed[-1] == EOS and not request.params.ignore_eos
        assert request.finish_reason == ("stop" if stopped else "length")


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
