"""Continuous batching: which tokens of which requests the next step computes.

There is no prefill phase and no decode phase: the computed tokens of each request catch up with its
known tokens under one token budget (the idea of vLLM V1's scheduler), so a chunk of a prompt, a
decode step, what a prefix hit leaves over and the recomputation after a preemption are the same
code. Drafted tokens are computed behind the known ones, within the same budget; those that are not
taken were never computed.

Knows nothing about tensors, models, sampling or text.
Law: every step schedules at least one token while there is work; requests are served in the order
of their ranks, and the one of the worst rank is preempted, but never for a draft; a waiting or
finished request holds no block of the device.
"""

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmopt.engine.admission import fit_request
from llmopt.engine.block_space import BlockMove, BlockSpace, Match
from llmopt.engine.policies import SchedulingPolicy
from llmopt.engine.request import FinishReason, Request, RequestStatus, StepOutput
from llmopt.errors import UsageError

Preemption = Literal["recompute", "swap"]


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """Tokens `[start, start + num_scheduled_tokens)` of a request.

    The last of them are those of a draft, if there is one. The last known token samples, and so
    does each token of the draft.
    """

    request: Request
    start: int
    num_scheduled_tokens: int
    samples: bool
    draft_token_ids: tuple[int, ...] = ()

    @property
    def num_known_tokens(self) -> int:
        """Scheduled tokens that are not drafted."""
        return self.num_scheduled_tokens - len(self.draft_token_ids)


@dataclass(slots=True)
class StepCounts:
    """What a step did besides computing.

    Prompt and prefix hit tokens are those of requests that started; `num_recovered_tokens` did not
    have to be recomputed when a preempted request came back; `num_forks` requests took over the
    blocks of their parent.
    """

    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_recovered_tokens: int = 0
    num_forks: int = 0


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. Moves are done before anything is computed: swap_outs, then copies, then swap_ins.

    Within one kind, all sources are read before a destination is written.
    """

    scheduled: tuple[ScheduledRequest, ...]
    counts: StepCounts = field(default_factory=StepCounts)
    swap_outs: tuple[BlockMove, ...] = ()
    copies: tuple[BlockMove, ...] = ()
    swap_ins: tuple[BlockMove, ...] = ()

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens that this step computes."""
        return sum(item.num_scheduled_tokens for item in self.scheduled)


@dataclass(slots=True)
class _Step:
    """A step in the making."""

    budget: int
    scheduled: list[ScheduledRequest] = field(default_factory=list)
    counts: StepCounts = field(default_factory=StepCounts)
    swap_outs: list[BlockMove] = field(default_factory=list)
    copies: list[BlockMove] = field(default_factory=list)
    swap_ins: list[BlockMove] = field(default_factory=list)
    started: list[Request] = field(default_factory=list)

    def compute(
        self, request: Request, num_tokens: int, draft_token_ids: tuple[int, ...] = ()
    ) -> None:
        samples = num_tokens == request.num_new_tokens
        start = request.num_computed_tokens
        num_scheduled = num_tokens + len(draft_token_ids)
        item = ScheduledRequest(request, start, num_scheduled, samples, draft_token_ids)
        self.scheduled.append(item)
        self.budget -= num_scheduled


def _rank(request: Request) -> tuple[int, int]:
    return request.rank


class Scheduler:
    """Owns the queue and the batch, both in the order of ranks.

    One step is `schedule()`, the model, `update()`; `add` and `abort` may come at any time.

    Args:
        max_prefill_chunk: most tokens of one request in a step; None: the whole budget, less one
            token for each running request behind it.
        preemption: "recompute" forgets keys and values (what the prefix cache still has is found
            there again); "swap" moves them to host memory while there is room.
    """

    def __init__(
        self,
        blocks: BlockSpace,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_prefill_chunk: int | None = None,
        policy: SchedulingPolicy | None = None,
        preemption: Preemption = "recompute",
    ) -> None:
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.max_prefill_chunk = max_prefill_chunk or max_num_batched_tokens
        self.policy = policy or SchedulingPolicy()
        self.preemption = preemption
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._num_steps = 0
        self._num_added = 0

    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.requests)

    def add(self, request: Request) -> None:
        """Queue a request, clipping its `max_tokens` to the model's length.

        Raises:
            EngineError: it could never be served: the prompt is too long for the model's length, or
                the whole request needs more blocks than there are.
            UsageError: the request id is in use.
        """
        self.check_unused(request.request_id)
        assert request.status is RequestStatus.WAITING, "only a new request can be added"
        fit_request(request, max_model_len=self.max_model_len, blocks=self.blocks)
        request.rank = self.policy.rank(request.priority, self._num_steps, self._num_added)
        self._num_added += 1
        self.requests[request.request_id] = request
        insort(self.waiting, request, key=_rank)

    def check_unused(self, request_id: str) -> None:
        """Raise UsageError if an unfinished request has this id."""
        if request_id in self.requests:
            raise UsageError(
                f"request id {request_id!r} is already in use", "Give each request its own."
            )

    def abort(self, request_id: str) -> bool:
        """Finish a request now and free its blocks; False if no such request is unfinished."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self.finish(request, "abort")
        return True

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End an unfinished request, wherever it is."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        elif request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        self._end(request, reason)

    def schedule(self, drafts: Mapping[str, tuple[int, ...]] | None = None) -> SchedulerOutput:
        """Choose the tokens of the next step and allocate their blocks.

        Args:
            drafts: by request id, tokens that may follow; as many are computed as there is room
                for, of requests that run and have nothing else to compute but what samples.
        """
        self._num_steps += 1
        step = _Step(self.max_num_batched_tokens)
        joinable = self.policy.continuous or not self.running
        self._continue_running(step, drafts or {})
        if joinable and step.counts.num_preemptions == 0:
            self._admit(step)
        assert step.scheduled or not self.requests, "a step schedules something while there is work"
        return SchedulerOutput(
            tuple(step.scheduled),
            step.counts,
            tuple(step.swap_outs),
            tuple(step.copies),
            tuple(step.swap_ins),
        )

    def update(
        self, output: SchedulerOutput, sampled_token_ids: Sequence[Sequence[int]]
    ) -> list[StepOutput]:
        """Record a step that was computed; requests aborted meanwhile get nothing.

        Args:
            output: what `schedule` returned for this step.
            sampled_token_ids: for each scheduled request that samples, in that order, the tokens
                that it got: those of its draft that were taken, and one more; none ends it with
                "error". What is behind one that ends the request is dropped.

        Returns:
            One output for each request that got a token or ended.
        """
        step_outputs: list[StepOutput] = []
        sampled = iter(sampled_token_ids)
        for item in output.scheduled:
            request = item.request
            token_ids = next(sampled) if item.samples else ()
            if request.status is RequestStatus.FINISHED:
                continue
            request.num_computed_tokens += item.num_known_tokens
            if item.samples:
                step_outputs.append(self._append(item, token_ids))
            else:
                self.blocks.register(request)
        assert next(sampled, None) is None, "sampled tokens are of requests that sample"
        if any(out.finish_reason for out in step_outputs):
            self.running = [r for r in self.running if r.status is RequestStatus.RUNNING]
        return step_outputs

    def check_invariants(self) -> None:
        """Assert the laws of this module and of the blocks; to be called between steps."""
        self.blocks.check_invariants(self.running, self.waiting)
        for request in self.running:
            assert request.status is RequestStatus.RUNNING, "the batch is what runs"
            assert request.num_new_tokens >= 1, "a running request has something to compute"
            if self.policy.continuous:
                needed = self.blocks.num_blocks_for(request.num_computed_tokens)
                assert len(request.block_tables[0]) == needed, "blocks for computed tokens, no more"
        for request in self.waiting:
            assert request.status is RequestStatus.WAITING, "the queue is what waits"
            assert bool(request.host_tables) == (request.num_computed_tokens > 0), (
                "a waiting request starts from its beginning, or was swapped out"
            )
        for requests in (self.running, self.waiting):
            assert requests == sorted(requests, key=_rank), "requests are in the order of ranks"
        assert len(self.running) <= self.max_num_seqs, "the batch is limited"
        ending = [r for r in self.requests.values() if r.status is RequestStatus.ENDING]
        known = [request.request_id for request in (*self.running, *self.waiting, *ending)]
        assert sorted(known) == sorted(self.requests), "each unfinished request is in one place"
        assert not any(r.block_tables for r in ending), "an ending request computes nothing more"

    def _continue_running(self, step: _Step, drafts: Mapping[str, tuple[int, ...]]) -> None:
        """Schedule running requests, best rank first; make room by preempting the worst."""
        index = 0
        while index < len(self.running) and step.budget > 0:
            request = self.running[index]
            # A prompt leaves the requests behind it one token each: their decodes do not stall.
            share = max(1, step.budget - (len(self.running) - 1 - index))
            num_tokens = min(request.num_new_tokens, share, self.max_prefill_chunk)
            draft = self._fit_draft(request, drafts.get(request.request_id, ()), num_tokens, share)
            while not self.blocks.extend(request, num_tokens):
                # The last running request is this one or comes after it: it is not scheduled yet.
                self._preempt_last(step)
                if request.status is RequestStatus.WAITING:
                    break
            else:
                step.compute(request, num_tokens, draft)
                index += 1
        self._extend_for_drafts(step)

    def _extend_for_drafts(self, step: _Step) -> None:
        """Drop the drafts that get no blocks, now that all known tokens have theirs."""
        for index, item in enumerate(step.scheduled):
            if not self.blocks.extend(item.request, item.num_scheduled_tokens):
                step.budget += len(item.draft_token_ids)
                known = item.num_known_tokens
                step.scheduled[index] = ScheduledRequest(item.request, item.start, known, True)

    def _fit_draft(
        self, request: Request, draft: tuple[int, ...], num_tokens: int, share: int
    ) -> tuple[int, ...]:
        """As much of a draft as the budget and the end of the request leave room for."""
        if num_tokens < request.num_new_tokens:
            return ()
        most = min(share - num_tokens, request.max_tokens - request.num_output_tokens - 1)
        return draft[: max(0, most)]

    def _admit(self, step: _Step) -> None:
        """Start waiting requests, in order, while slots, budget and blocks for all of it last."""
        index = 0
        while index < len(self.waiting) and len(self.running) < self.max_num_seqs:
            if step.budget == 0 and self.policy.continuous:
                break
            request = self.waiting[index]
            if _waits_for_parent(request, step):
                index += 1
                continue
            if not self._start(request, step):
                break
            del self.waiting[index]
            request.status = RequestStatus.RUNNING
            step.started.append(request)
            insort(self.running, request, key=_rank)

    def _start(self, request: Request, step: _Step) -> bool:
        """Give a waiting request its blocks and its tokens of this step; False: no room."""
        most = min(step.budget, self.max_prefill_chunk)
        if request.host_tables:
            num_tokens = min(request.num_new_tokens, most)
            moves = self.blocks.swap_in(request, num_tokens)
            if moves is None:
                return False
            step.swap_ins += moves
            step.counts.num_recovered_tokens += request.num_computed_tokens
        else:
            match = self.blocks.find_match(request)
            num_tokens = min(request.num_tokens - match.num_tokens, most)
            reserve = 0 if self.policy.continuous else request.num_prompt_tokens
            if reserve:  # all tokens but the last are computed
                reserve += request.max_tokens - 1
            copies = self.blocks.admit(request, match, num_tokens, reserve)
            if copies is None:
                return False
            step.copies += copies
            _count_start(request, match, step.counts)
        if num_tokens:
            step.compute(request, num_tokens)
        return True

    def _preempt_last(self, step: _Step) -> None:
        """Send the running request of the worst rank back to the queue, with all its tokens."""
        request = self.running.pop()
        moves = self.blocks.swap_out(request) if self.preemption == "swap" else None
        if moves is None:
            self.blocks.release(request)
            request.num_computed_tokens = 0
        else:
            step.swap_outs += moves
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        insort(self.waiting, request, key=_rank)
        step.counts.num_preemptions += 1

    def _append(self, item: ScheduledRequest, token_ids: Sequence[int]) -> StepOutput:
        """Add the tokens that a request got; those of a draft are computed, the last one is not."""
        assert len(token_ids) <= len(item.draft_token_ids) + 1, "a token for each row that samples"
        request = item.request
        taken: list[int] = []
        reason: FinishReason | None = None if token_ids else "error"
        for token_id in token_ids:
            taken.append(token_id)
            reason = request.append(token_id)
            if reason is not None:
                break
        request.num_computed_tokens += len(taken) - 1
        self.blocks.register(request)
        if reason is not None:
            self._end(request, reason)
        elif item.draft_token_ids and self.policy.continuous:
            self.blocks.trim(request)
        return request.output(tuple(taken), reason)

    def _end(self, request: Request, reason: FinishReason) -> None:
        self.blocks.release(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        del self.requests[request.request_id]


def _waits_for_parent(request: Request, step: _Step) -> bool:
    """Whether the prompt that a request shares is being computed, or moved, by its parent."""
    parent = request.parent
    if parent is None or parent.status is not RequestStatus.RUNNING:
        return False
    return parent.num_computed_tokens < parent.num_prompt_tokens or parent in step.started


def _count_start(request: Request, match: Match, counts: StepCounts) -> None:
    if request.num_preemptions:
        counts.num_recovered_tokens += match.num_tokens
        return
    counts.num_prompt_tokens += request.num_prompt_tokens
    if match.forked:
        counts.num_forks += 1
    else:
        request.num_prefix_hit_tokens = match.num_tokens
        counts.num_prefix_hit_tokens += match.num_tokens
