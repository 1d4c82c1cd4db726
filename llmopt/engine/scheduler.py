"""Continuous batching: which tokens of which requests the next step computes.

There is no prefill phase and no decode phase: the computed tokens of each request catch up with its
known tokens under one token budget (the idea of vLLM V1's scheduler), so a chunk of a prompt, a
decode step and the recomputation after a preemption are the same code.

Knows nothing about tensors, models, sampling or text.
Law: every step schedules at least one token while there is work; first come, first served; a
request holds exactly the blocks that its computed and scheduled tokens need, and none when it waits
or is finished.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.engine.admission import fit_request
from llmopt.engine.block_pool import BlockPool
from llmopt.engine.request import FinishReason, Request, RequestStatus, StepOutput
from llmopt.errors import UsageError


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """Tokens `[start, start + num_scheduled_tokens)` of a request; the last known one samples."""

    request: Request
    start: int
    num_scheduled_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step: what to compute, and how many requests lost their blocks to make room for it."""

    scheduled: tuple[ScheduledRequest, ...]
    num_preemptions: int = 0

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens that this step computes."""
        return sum(item.num_scheduled_tokens for item in self.scheduled)


class Scheduler:
    """Owns the queue, the batch and the block tables.

    One step is `schedule()`, the model, `update()`; `add` and `abort` may come at any time.
    """

    def __init__(
        self,
        block_pool: BlockPool,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ) -> None:
        self.block_pool = block_pool
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.requests: dict[str, Request] = {}
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.requests)

    def add(self, request: Request) -> None:
        """Queue a request, clipping its `max_tokens` to the model's length.

        Raises:
            EngineError: it could never be served: the prompt is too long for the model's length, or
                the whole request needs more blocks than the pool has.
            UsageError: the request id is in use.
        """
        if request.request_id in self.requests:
            raise UsageError(
                f"request id {request.request_id!r} is already in use", "Give each request its own."
            )
        assert request.status is RequestStatus.WAITING, "only a new request can be added"
        fit_request(
            request,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            num_blocks=self.block_pool.num_blocks,
        )
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """Finish a request now and free its blocks; False if no such request is unfinished."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._finish(request, "abort")
        return True

    def schedule(self) -> SchedulerOutput:
        """Choose the tokens of the next step and allocate their blocks."""
        scheduled: list[ScheduledRequest] = []
        budget = self.max_num_batched_tokens
        num_preemptions = 0
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_tokens = min(request.num_new_tokens, budget)
            while not self._allocate(request, num_tokens):
                # The last running request is this one or comes after it: it is not scheduled yet.
                self._preempt_last()
                num_preemptions += 1
                if request.status is RequestStatus.WAITING:
                    break
            else:
                scheduled.append(self._scheduled(request, num_tokens))
                budget -= num_tokens
                index += 1
        if num_preemptions == 0:
            self._admit(scheduled, budget)
        assert scheduled or not self.requests, "a step schedules something while there is work"
        return SchedulerOutput(tuple(scheduled), num_preemptions)

    def update(self, output: SchedulerOutput, sampled_token_ids: Sequence[int]) -> list[StepOutput]:
        """Record a step that was computed; requests aborted meanwhile get nothing.

        Args:
            output: what `schedule` returned for this step.
            sampled_token_ids: one token for each scheduled request that samples, in that order.

        Returns:
            One output for each request that got a token.
        """
        step_outputs: list[StepOutput] = []
        sampled = iter(sampled_token_ids)
        for item in output.scheduled:
            request = item.request
            token_id = next(sampled) if item.samples else None
            if request.status is RequestStatus.FINISHED:
                continue
            request.num_computed_tokens += item.num_scheduled_tokens
            if token_id is None:
                continue
            reason = request.append(token_id)
            if reason is not None:
                self._finish(request, reason)
            step_outputs.append(
                StepOutput(request.request_id, (token_id,), reason, request.num_preemptions)
            )
        assert next(sampled, None) is None, "one sampled token for each request that samples"
        self.running = [r for r in self.running if r.status is RequestStatus.RUNNING]
        return step_outputs

    def check_invariants(self) -> None:
        """Assert the law of this module and of its block pool; to be called between steps."""
        self.block_pool.check_invariants()
        held = Counter(block_id for r in self.running for block_id in r.block_table)
        assert held.total() >= self.block_pool.num_used_blocks, "no block is held by nobody"
        for block_id, count in held.items():
            assert self.block_pool.ref_count(block_id) == count, "holders are the tables it is in"
        for request in self.running:
            assert request.status is RequestStatus.RUNNING, "the batch is what runs"
            assert request.num_new_tokens >= 1, "a running request has something to compute"
            needed = self._num_blocks(request.num_computed_tokens)
            assert len(request.block_table) == needed, "blocks for the computed tokens, no more"
        for request in self.waiting:
            assert request.status is RequestStatus.WAITING, "the queue is what waits"
            assert not request.block_table, "a waiting request holds no block"
            assert request.num_computed_tokens == 0, "a waiting request starts from its beginning"
        assert len(self.running) <= self.max_num_seqs, "the batch is limited"
        known = [request.request_id for request in (*self.running, *self.waiting)]
        assert sorted(known) == sorted(self.requests), "each unfinished request is in one place"

    def _admit(self, scheduled: list[ScheduledRequest], budget: int) -> None:
        """Start waiting requests, in order, while slots, budget and blocks for all of it last."""
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if self._num_blocks(request.num_tokens) > self.block_pool.num_free_blocks:
                break
            num_tokens = min(request.num_new_tokens, budget)
            allocated = self._allocate(request, num_tokens)
            assert allocated, "a part of a request fits where all of it does"
            self.running.append(self.waiting.popleft())
            request.status = RequestStatus.RUNNING
            scheduled.append(self._scheduled(request, num_tokens))
            budget -= num_tokens

    def _scheduled(self, request: Request, num_tokens: int) -> ScheduledRequest:
        samples = num_tokens == request.num_new_tokens
        return ScheduledRequest(request, request.num_computed_tokens, num_tokens, samples)

    def _allocate(self, request: Request, num_tokens: int) -> bool:
        """Extend the block table for `num_tokens` more computed tokens, wholly or not at all."""
        needed = self._num_blocks(request.num_computed_tokens + num_tokens)
        block_ids = self.block_pool.allocate(max(0, needed - len(request.block_table)))
        if block_ids is None:
            return False
        request.block_table.extend(block_ids)
        return True

    def _preempt_last(self) -> None:
        """Send the last running request to the head of the queue, to be computed again."""
        request = self.running.pop()
        self._free_blocks(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self.waiting.appendleft(request)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self._free_blocks(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        del self.requests[request.request_id]

    def _free_blocks(self, request: Request) -> None:
        # Tail first: the beginning of a sequence is what another one may share.
        self.block_pool.free(reversed(request.block_table))
        request.block_table.clear()

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
