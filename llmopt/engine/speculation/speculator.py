"""Speculation in the engine's loop: how much to draft, what came of it, and what it cost.

Knows nothing about how drafts are made, checked or scheduled; the clock is an argument.
Law: it never changes what is generated, only in how many steps.
"""

import time
from collections.abc import Callable, Sequence

from llmopt.engine.request import Request, StepOutput
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.engine.speculation.draft_length import (
    PRIOR_ACCEPTANCE,
    Acceptance,
    StepTimes,
    choose_lengths,
)
from llmopt.engine.speculation.proposer import Proposer
from llmopt.engine.speculation.stats import SpeculationStats, break_even_acceptance
from llmopt.layers.rejection_sampler import Draft

_PROBE_INTERVAL = 64  # decode steps between two without drafts, and between two with long ones


class Speculator:
    """A proposer with the knowledge of when it pays.

    Args:
        max_draft_tokens: most tokens of a draft.
        adaptive: choose fewer where it is faster; otherwise always as many as may be.
        clock: seconds.
    """

    def __init__(
        self,
        proposer: Proposer,
        *,
        max_draft_tokens: int,
        adaptive: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.proposer = proposer
        self.stats = SpeculationStats()
        self.times = StepTimes()
        self._max = max_draft_tokens
        self._adaptive = adaptive
        self._clock = clock
        self._prior = Acceptance([PRIOR_ACCEPTANCE] * max_draft_tokens)
        self._acceptance: dict[str, Acceptance] = {}
        self._num_steps = 0
        self._drafted_before: set[str] = set()
        self._draft_s: float | None = None  # of this step; None: it says nothing about others
        self._depth = 0
        self._drafted_at = 0.0

    def propose(self, running: Sequence[Request], budget: int) -> dict[str, Draft]:
        """Drafts by request id, not empty, for requests that decode.

        Args:
            running: the batch, best rank first.
            budget: most tokens of the next step.
        """
        requests, limits = self._choose(running, budget)
        start = self._clock()
        drafts = self.proposer.propose(requests, limits) if requests else []
        self._drafted_at = self._clock()
        names = {request.request_id for request in requests}
        # The first draft of a request also computes its prompt.
        self._draft_s = self._drafted_at - start if names <= self._drafted_before else None
        self._depth = max(map(len, drafts), default=0)
        self._drafted_before |= names
        return {
            request.request_id: draft
            for request, draft in zip(requests, drafts, strict=True)
            if draft.token_ids
        }

    def record(self, output: SchedulerOutput, sampled: Sequence[Sequence[int]]) -> None:
        """Learn from a step that was just computed; `sampled` are its tokens, by request."""
        seconds = self._clock() - self._drafted_at
        results = iter(sampled)
        only_decodes = True
        for item in output.scheduled:
            token_ids = next(results) if item.samples else ()
            if item.num_known_tokens > 1 or not token_ids:
                only_decodes = False
                continue
            num_drafted, num_taken = len(item.draft_token_ids), len(token_ids) - 1
            self.stats.count_decode(num_drafted, num_taken)
            if num_drafted:
                self._prior.record(num_drafted, num_taken)
                self._of(item.request.request_id).record(num_drafted, num_taken)
        if only_decodes and self._draft_s is not None:
            self.times.record_model(output.num_scheduled_tokens, seconds)
            self.stats.model_s += seconds
            self.stats.draft_s += self._draft_s
            if self._depth:
                self.times.record_draft(self._depth, self._draft_s)

    def forget_finished(self, step_outputs: Sequence[StepOutput]) -> None:
        """Forget the requests that a step ended."""
        for out in step_outputs:
            if out.finish_reason is not None:
                self.forget(out.request_id)

    def forget(self, request_id: str) -> None:
        """The request ended or was aborted."""
        self.proposer.forget(request_id)
        self._acceptance.pop(request_id, None)
        self._drafted_before.discard(request_id)

    def break_even(self) -> float | None:
        """The acceptance at which drafts of the mean length gain nothing for one request alone.

        None: no acceptance is enough, or nothing was drafted.
        """
        length = round(self.stats.mean_draft_tokens)
        base_s, token_s = self.times.fit()
        if length == 0 or base_s + token_s <= 0:
            return None
        spent = base_s + token_s * (length + 1) + self.times.draft_s * length
        return break_even_acceptance(length, spent / (base_s + token_s))

    def _choose(self, running: Sequence[Request], budget: int) -> tuple[list[Request], list[int]]:
        """Which requests to draft for, and how many tokens at most (at least 1 each)."""
        left = budget - len(running)
        requests: list[Request] = []
        limits: list[int] = []
        for request in running:
            # A step with a draft of k tokens gives up to k + 1.
            limit = min(self._max, request.max_tokens - request.num_output_tokens - 1, left)
            if request.num_new_tokens == 1 and limit > 0:
                requests.append(request)
                limits.append(limit)
                left -= limit
        if self._adaptive and requests:
            limits = self._adapt(requests, limits)
        pairs = [(r, n) for r, n in zip(requests, limits, strict=True) if n > 0]
        return [r for r, _ in pairs], [n for _, n in pairs]

    def _adapt(self, requests: Sequence[Request], limits: Sequence[int]) -> list[int]:
        step = self._num_steps
        self._num_steps += 1
        if step < 2 * (self._max + 1):  # each length twice, for the times
            return [min(step % (self._max + 1), limit) for limit in limits]
        if step % _PROBE_INTERVAL == 0:
            return [0] * len(limits)
        if step % _PROBE_INTERVAL == _PROBE_INTERVAL // 2:
            return list(limits)
        estimates = [self._of(request.request_id) for request in requests]
        gains = [one.gains(limit) for one, limit in zip(estimates, limits, strict=True)]
        chosen = choose_lengths(gains, self.times)
        for estimate, length in zip(estimates, chosen, strict=True):
            if length == 0:
                estimate.fade()
        return chosen

    def _of(self, request_id: str) -> Acceptance:
        estimate = self._acceptance.get(request_id)
        if estimate is None:
            estimate = self._acceptance[request_id] = Acceptance(self._prior.rates)
        return estimate
