"""The one face that every serving runtime shows to the load generator.

Knows nothing about clocks, metrics or recipes: the load generator takes the time when it receives
an event, so that all backends are timed by the same hand. The law: a stream yields every generated
token exactly once, in order, and raises when the request failed.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """What is asked of the backend for one request."""

    max_tokens: int
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New tokens of one request, as they reached the client; none, if a server sent an event
    without any, such as the one that only names the role.

    `finish_reason` is set once, at the end. `num_prompt_tokens` is the length of the prompt as the
    backend counted it, where it says so: a backend that truncates in silence is found out by it.
    `num_preemptions` counts how often the request has lost its cache so far. `total_tokens` comes
    at the end of a stream whose events did not say how many tokens each held, and were counted as
    one token each: the backend's own count of them all.
    """

    num_tokens: int
    finish_reason: str | None = None
    num_prompt_tokens: int | None = None
    num_preemptions: int = 0
    num_cached_tokens: int | None = None  # of the prompt, found in a cache
    total_tokens: int | None = None
    is_guess: bool = False  # one token was counted because the backend did not say how many
    has_choice: bool = True  # False: it brings counts only, and is no part of the answer
    server_timings_s: Mapping[str, float] | None = None  # what a server says of itself
    is_reasoning: bool = False  # its tokens come before the answer, in a field of their own
    text: str = ""  # what was generated, where the backend hands text on


class Backend(Protocol):
    """A runtime that serves one model."""

    @property
    def name(self) -> str:
        """Name of the runtime, such as "llmopt"."""
        ...

    @property
    def version(self) -> str:
        """Version of the runtime."""
        ...

    @property
    def settings(self) -> dict[str, object]:
        """The settings it serves with, as they go into the result file."""
        ...

    def start(self) -> None:
        """Get ready to serve. Raises `BackendError` or `EngineError` when it cannot."""
        ...

    def drive(self, client: Callable[[], T]) -> T:
        """Run `client`, which streams requests, to its end; returns or raises what it does.

        A backend that computes in this process does so in the calling thread, and runs the client
        beside it; a server elsewhere only needs the client to run.
        """
        ...

    def stop(self) -> None:
        """Release everything; a second call does nothing."""
        ...

    def stream(
        self, prompt_token_ids: Sequence[int], params: GenerationParams, /
    ) -> AsyncGenerator[TokenEvent, None]:
        """Serve one request. Closing or cancelling the generator aborts the request."""
        ...

    def stats(self) -> dict[str, float]:
        """Counters since `start`, such as `num_steps`. Names that begin with `peak_` are maxima."""
        ...
