"""The requests of one run: their prompts, how many tokens each may answer, and when they are due.

Knows nothing about backends or clocks. The laws: the load, the seed and the repeat decide every
request, so all targets are asked the same; no prompt begins like another, unless the load says so.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from llmopt.bench.arrivals import arrival_times
from llmopt.bench.workload_lengths import Sizes
from llmopt.bench.workload_prompts import Prompt, UserPrompt, cut_prompts, random_prompts
from llmopt.bench.workload_spec import LoadPlan
from llmopt.bench.workload_trace import MOONCAKE_BLOCK, TracedRequest
from llmopt.errors import UsageError

# what a seed is used for, so that no two uses draw the same numbers
_SIZES, _TEXT, _TIMES, _CHOICE, _GROUPS, _REPLIES, _BLOCKS = range(7)


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request. `scheduled_s` None: when a slot is free, or the turn before it is done."""

    prompt_token_ids: Prompt
    max_tokens: int
    scheduled_s: float | None = None
    conversation: str | None = None
    turn: int | None = None
    think_s: float = 0.0  # between the turn before and this one


@dataclass(frozen=True, slots=True)
class RunPlan:
    """All requests of a run. `concurrency`: of a closed loop, and of the warm-up."""

    warmup: tuple[PlannedRequest, ...]
    measured: tuple[PlannedRequest, ...]
    concurrency: int

    @property
    def is_open(self) -> bool:
        """Whether requests come when they are due, not when another one ends."""
        return bool(self.measured) and self.measured[0].scheduled_s is not None

    @property
    def max_request_tokens(self) -> int:
        """Tokens of the longest request, prompt and output."""
        requests = (*self.warmup, *self.measured)
        return max(len(each.prompt_token_ids) + each.max_tokens for each in requests)


def make_plan(
    load: LoadPlan,
    text_token_ids: Sequence[int],
    *,
    seed: int,
    repeat: int,
    user_prompts: Sequence[UserPrompt] = (),
) -> RunPlan:
    """Plan one run.

    Raises UsageError when the text is too short, or repeats itself too much, for the prompts, or a
    prompt of the user's is longer than the load has room for.
    """
    # prompts of one load are new to a server that has served another one
    digest = zlib.crc32(repr(load.load).encode())
    planner = _Planner(load, text_token_ids, (seed, repeat, digest))
    if user_prompts:
        warmup, measured = planner.from_user(user_prompts)
    elif load.trace:
        warmup, measured = planner.from_trace(load.trace)
    elif load.load.workload.turns > 1:
        warmup, measured = planner.conversations()
    else:
        warmup, measured = planner.single()
    return RunPlan(
        tuple(warmup), tuple(planner.schedule(measured)), concurrency=load.spec.concurrency
    )


@dataclass(frozen=True, slots=True)
class _Planner:
    plan: LoadPlan
    text: Sequence[int]
    seed: tuple[int, int, int]

    def single(self) -> tuple[list[PlannedRequest], list[PlannedRequest]]:
        """Requests that have nothing to do with each other, but for shared beginnings."""
        work, number = self.plan.load.workload, self.plan.spec.num_requests
        num_distinct = min(work.distinct_prompts or number, number)
        sizes = self._sizes(num_distinct)
        warmup, bodies = self._bodies(sizes)
        if work.distinct_prompts is not None:
            chosen = self._rng(_CHOICE).integers(num_distinct, size=number).tolist()
            sizes, bodies = [sizes[i] for i in chosen], [bodies[i] for i in chosen]
        return warmup, [
            PlannedRequest(body, size.output_tokens)
            for body, size in zip(bodies, sizes, strict=True)
        ]

    def from_trace(
        self, trace: Sequence[TracedRequest]
    ) -> tuple[list[PlannedRequest], list[PlannedRequest]]:
        """Requests as long as the trace says; those that share blocks there, share them here."""
        warmup, measured = self.single()
        ids = dict.fromkeys(block for row in trace for block in row.block_ids)
        blocks = dict(
            zip(ids, self._cut([MOONCAKE_BLOCK] * len(ids), _BLOCKS), strict=True) if ids else ()
        )
        for index, row in enumerate(trace):
            prompt = measured[index].prompt_token_ids
            # the last token stays the request's own: an engine computes at least one
            shared = [token for block in row.block_ids for token in blocks[block]]
            kept = min(len(shared), len(prompt) - 1)
            whole = (*shared[:kept], *prompt[kept:])
            measured[index] = PlannedRequest(whole, measured[index].max_tokens)
        return warmup, measured

    def conversations(self) -> tuple[list[PlannedRequest], list[PlannedRequest]]:
        """Conversation by conversation, turn by turn; each prompt holds all turns before it."""
        work, number = self.plan.load.workload, self.plan.spec.num_requests
        sizes = self._sizes(number)
        warmup, bodies = self._bodies(sizes)
        replies = self._cut([size.output_tokens for size in sizes], _REPLIES, unique=False)
        measured: list[PlannedRequest] = []
        said: Prompt = ()
        for index, (body, reply, size) in enumerate(zip(bodies, replies, sizes, strict=True)):
            conversation, turn = divmod(index, work.turns)
            said = body if turn == 0 else said + body
            think_s = work.think_s if turn else 0.0
            measured.append(
                PlannedRequest(
                    said, size.output_tokens, None, f"conversation-{conversation}", turn, think_s
                )
            )
            said += reply
        return warmup, measured

    def from_user(
        self, prompts: Sequence[UserPrompt]
    ) -> tuple[list[PlannedRequest], list[PlannedRequest]]:
        """The user's prompts in the order of the file, from the start again if there are few."""
        room, default = self.plan.spec.prompt_tokens, self.plan.load.output_tokens
        for number, prompt in enumerate(prompts, start=1):
            if not 1 <= len(prompt.token_ids) <= room:
                raise UsageError(
                    f"prompt {number} has {len(prompt.token_ids)} tokens, and the load has room"
                    f" for {room}",
                    "Raise prompt_tokens, or leave the prompt out.",
                )
            if prompt.output_tokens is None and not isinstance(default, int):
                raise UsageError(
                    f"neither prompt {number} nor the load says how long its answer is",
                    "Add output_tokens.",
                )
        requests = [
            PlannedRequest(
                prompt.token_ids,
                prompt.output_tokens or (default if isinstance(default, int) else 1),
            )
            for prompt in prompts
        ]
        num_warmup = self.plan.spec.warmup_requests
        total = num_warmup + self.plan.spec.num_requests
        chosen = [requests[index % len(requests)] for index in range(total)]
        return chosen[:num_warmup], chosen[num_warmup:]

    def schedule(self, requests: Sequence[PlannedRequest]) -> Iterator[PlannedRequest]:
        """The same requests with the times at which they are due, if the loop is open."""
        times = self._times(len(requests))
        for index, request in enumerate(requests):
            is_first = not request.turn
            yield PlannedRequest(
                request.prompt_token_ids,
                request.max_tokens,
                times[index] if times is not None and is_first else None,
                request.conversation,
                request.turn,
                request.think_s,
            )

    def _times(self, number: int) -> list[float] | None:
        load, spec = self.plan.load, self.plan.spec
        if spec.kind == "closed":
            return None
        if spec.kind == "trace":
            return [row.at_s * load.time_scale for row in self.plan.trace]
        times = arrival_times(spec, (*self.seed, _TIMES))
        # conversations come as often as lets the rate of all requests be what was asked for
        turns = load.workload.turns
        return times if turns == 1 else [times[i // turns * turns] for i in range(number)]

    def _sizes(self, number: int) -> list[Sizes]:
        if self.plan.sizes is not None:
            return self.plan.sizes.draw(number, (*self.seed, _SIZES))
        return list(self.plan.traced_sizes)

    def _bodies(self, sizes: Sequence[Sizes]) -> tuple[list[PlannedRequest], list[Prompt]]:
        """The warm-up, and a prompt of each size: its group's beginning, and its own rest."""
        work, spec = self.plan.load.workload, self.plan.spec
        warm = [sizes[i % len(sizes)] for i in range(spec.warmup_requests)]
        first_turns = [index % work.turns == 0 for index in range(len(sizes))]
        shared = [work.prefix_tokens if first else 0 for first in first_turns]
        own = [max(1, s.prompt_tokens - k) for s, k in zip(sizes, shared, strict=True)]
        lengths = [work.prefix_tokens] * work.prefix_groups + own
        pieces = self._cut([size.prompt_tokens for size in warm] + lengths, _TEXT)
        ready = [
            PlannedRequest(prompt, size.output_tokens)
            for prompt, size in zip(pieces, warm, strict=False)
        ]
        prefixes = pieces[len(warm) : len(warm) + work.prefix_groups]
        rests = pieces[len(warm) + work.prefix_groups :]
        if not prefixes:
            return ready, rests
        groups = self._rng(_GROUPS).integers(len(prefixes), size=len(rests)).tolist()
        return ready, [
            prefixes[group] + rest if first else rest
            for group, rest, first in zip(groups, rests, first_turns, strict=True)
        ]

    def _cut(self, lengths: Sequence[int], use: int, *, unique: bool = True) -> list[Prompt]:
        variant = (self.plan.variant,) if self.plan.variant else ()
        seed = (*self.seed, use, *variant)
        if self.plan.load.workload.source == "random":
            return random_prompts(self.text, lengths, seed)
        if unique:
            return cut_prompts(self.text, lengths, seed)
        rng = np.random.default_rng(seed)
        starts = [int(rng.integers(max(1, len(self.text) - length + 1))) for length in lengths]
        pieces = zip(starts, lengths, strict=True)
        return [tuple(self.text[start : start + length]) for start, length in pieces]

    def _rng(self, use: int) -> np.random.Generator:
        return np.random.default_rng((*self.seed, use))


def sessions(requests: Sequence[PlannedRequest]) -> list[list[tuple[int, PlannedRequest]]]:
    """The requests with their indices, those of one conversation together, in order."""
    grouped = groupby(
        enumerate(requests), key=lambda item: item[1].conversation or f"request-{item[0]}"
    )
    return [list(members) for _, members in grouped]
