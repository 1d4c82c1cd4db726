"""What has been seen of one request while its stream goes on.

Knows nothing about clocks or event loops: it is told when an event came. The law: tokens are
counted, not events; a stream without a token is an error.
"""

from dataclasses import dataclass, field

from llmopt.backends.protocol import TokenEvent
from llmopt.bench.workload import PlannedRequest
from llmopt.results.schema import RequestRecord


@dataclass(slots=True)
class StreamRecord:
    """Times and counts so far; times in seconds since the start of the run."""

    request_id: str
    request: PlannedRequest
    scheduled_s: float
    sent_s: float
    times_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    first_event_s: float | None = None
    num_events: int = 0
    empty_times_s: list[float] = field(default_factory=list)
    first_answer_s: float | None = None
    num_reasoning_events: int = 0
    total_tokens: int | None = None
    is_guess: bool = False
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    num_preemptions: int = 0
    server_timings_s: dict[str, float] | None = None

    def add(self, event: TokenEvent, now_s: float) -> None:
        """Note an event."""
        self.num_events += event.has_choice
        if self.first_event_s is None and event.has_choice:
            self.first_event_s = now_s
        if event.num_tokens > 0:
            self.times_s.append(now_s)
            self.counts.append(event.num_tokens)
            self.num_reasoning_events += event.is_reasoning
            if self.first_answer_s is None and not event.is_reasoning:
                self.first_answer_s = now_s
        elif event.has_choice:
            self.empty_times_s.append(now_s)
        self.is_guess |= event.is_guess
        self.finish_reason = event.finish_reason or self.finish_reason
        self.num_preemptions = event.num_preemptions
        if event.num_prompt_tokens is not None:
            self.num_prompt_tokens = event.num_prompt_tokens
        if event.num_cached_tokens is not None:
            self.num_cached_tokens = event.num_cached_tokens
        if event.total_tokens is not None:
            self.total_tokens = event.total_tokens
        if event.server_timings_s is not None:
            self.server_timings_s = dict(event.server_timings_s)

    def freeze(self, done_s: float | None) -> RequestRecord:
        """The record. `done_s` None: the stream failed."""
        error = self.error
        if error is None and not self.counts:
            error = "the stream ended without a token"
        counts, disagreement = self._counts()
        sent = len(self.request.prompt_token_ids)
        return RequestRecord(
            request_id=self.request_id,
            num_prompt_tokens=sent if self.num_prompt_tokens is None else self.num_prompt_tokens,
            num_output_tokens=sum(counts),
            scheduled_s=self.scheduled_s,
            sent_s=self.sent_s,
            first_token_s=self.times_s[0] if self.times_s else None,
            last_token_s=self.times_s[-1] if self.times_s else None,
            done_s=done_s,
            token_times_s=tuple(self.times_s),
            token_counts=tuple(counts),
            finish_reason=self.finish_reason,
            error=error or disagreement,
            num_preemptions=self.num_preemptions,
            num_prompt_tokens_sent=sent,
            num_cached_tokens=self.num_cached_tokens,
            max_tokens=self.request.max_tokens,
            first_event_s=self.first_event_s,
            num_events=self.num_events,
            counted_by="events" if self.is_guess and self.total_tokens is None else "backend",
            conversation=self.request.conversation,
            turn=self.request.turn,
            server_timings_s=self.server_timings_s,
            empty_event_times_s=tuple(self.empty_times_s),
            first_answer_s=self.first_answer_s if self.num_reasoning_events else None,
            num_reasoning_events=self.num_reasoning_events,
        )

    def _counts(self) -> tuple[list[int], str | None]:
        """Tokens of each event: where only their total is known, it is spread evenly over them."""
        total, events = self.total_tokens, len(self.counts)
        if total is None or not events:
            return self.counts, None
        if total < events:
            return (
                self.counts,
                f"the server counts {total} tokens, and {events} events brought some",
            )
        return [total * (i + 1) // events - total * i // events for i in range(events)], None
