"""What a runtime really does, found by asking it before the load does.

Knows nothing about time. The law: a finding is something that was seen, never what a runtime says
it can do. The probe is the runtime's first work: it also takes first-use costs off the load.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmopt.backends.protocol import Backend, GenerationParams, TokenEvent

NUM_TOKENS = 8
NUM_REQUESTS = 2
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Findings of the same greedy request, made more than once, each after the other.

    num_prompt_tokens_sent, num_prompt_tokens_counted: the second by the runtime's own count, None
        where it gives none; they differ where the prompt was sent as text that became other tokens,
        where a token was put before it, or where it was cut
    num_output_tokens: of each request; NUM_TOKENS were asked for, the end of text being ignored
    finish_reasons: of each request
    gives_all_tokens: no request ended before its limit
    counts_events: the runtime says of every event how many tokens it holds
    counts_tokens: it says how many tokens it gave, by events or in total
    tokens_per_event: of those events that hold any
    is_repeatable: the text was the same every time; None where no text was seen
    num_cached_tokens: of the last request's prompt, None where the runtime does not say
    server_timings: names of what it says of its own times
    """

    num_prompt_tokens_sent: int
    num_prompt_tokens_counted: int | None
    num_output_tokens: tuple[int, ...]
    finish_reasons: tuple[str, ...]
    gives_all_tokens: bool
    counts_events: bool
    counts_tokens: bool
    tokens_per_event: float
    is_repeatable: bool | None
    num_cached_tokens: int | None
    server_timings: tuple[str, ...]


def probe(backend: Backend, prompt_token_ids: Sequence[int]) -> Probe:
    """Ask a backend that has been started; the prompt should be one that the load does not use.

    Raises BackendError where a request fails.
    """
    answers = backend.drive(lambda: asyncio.run(_ask(backend, prompt_token_ids)))
    return _judge(prompt_token_ids, answers)


async def _ask(backend: Backend, prompt_token_ids: Sequence[int]) -> list[list[TokenEvent]]:
    params = GenerationParams(NUM_TOKENS, ignore_eos=True, temperature=0.0)
    async with asyncio.timeout(TIMEOUT_S):
        return [
            [event async for event in backend.stream(prompt_token_ids, params)]
            for _ in range(NUM_REQUESTS)
        ]


def _judge(prompt_token_ids: Sequence[int], answers: Sequence[Sequence[TokenEvent]]) -> Probe:
    events = [event for answer in answers for event in answer]
    with_tokens = [event for event in events if event.num_tokens > 0]
    num_output_tokens = tuple(_num_tokens(answer) for answer in answers)
    texts = {"".join(event.text for event in answer) for answer in answers}
    has_guesses = any(event.is_guess for event in events)
    return Probe(
        num_prompt_tokens_sent=len(prompt_token_ids),
        num_prompt_tokens_counted=_last(event.num_prompt_tokens for event in events),
        num_output_tokens=num_output_tokens,
        finish_reasons=tuple(e.finish_reason for e in events if e.finish_reason is not None),
        gives_all_tokens=set(num_output_tokens) == {NUM_TOKENS},
        counts_events=not has_guesses,
        counts_tokens=not has_guesses or any(e.total_tokens is not None for e in events),
        tokens_per_event=sum(num_output_tokens) / max(len(with_tokens), 1),
        is_repeatable=None if texts == {""} else len(texts) == 1,
        num_cached_tokens=_last(event.num_cached_tokens for event in answers[-1]),
        server_timings=tuple(sorted({n for e in events for n in e.server_timings_s or {}})),
    )


def _num_tokens(answer: Sequence[TokenEvent]) -> int:
    """By the runtime's total, where it gives one, else by its events."""
    total = _last(event.total_tokens for event in answer)
    return sum(event.num_tokens for event in answer) if total is None else total


def _last(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return known[-1] if known else None
