"""The data of the runtime: what is asked for, how far it has come, what comes out.

Knows nothing about tensors, blocks' contents or text.
Law: `0 <= num_computed_tokens < num_tokens` while a request is unfinished, and generated tokens are
never taken back, whatever happens to the blocks.
"""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from llmopt.errors import UsageError

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose and when to stop the tokens of one request.

    Args:
        max_tokens: most tokens to generate; clipped to what fits in the model's length.
        min_tokens: end-of-sequence and stop tokens are impossible before this many tokens.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens (after temperature); None keeps all.
        top_p: then keep the smallest set of most likely tokens whose probability reaches top_p.
        seed: the random stream; None draws a fresh one per request.
        ignore_eos: end-of-sequence tokens of the model do not stop the request.
        stop_token_ids: further tokens that stop it; they stop it even under `ignore_eos`.

    Raises:
        UsageError: a value is out of its range.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, value: object, remedy: str) -> None:
            if not holds:
                raise UsageError(f"{name} is {value}", remedy)

        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "Give at least 1.")
        require(
            0 <= self.min_tokens <= self.max_tokens,
            "min_tokens",
            self.min_tokens,
            f"Give a number from 0 to max_tokens ({self.max_tokens}).",
        )
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "Give 0 for greedy decoding or a positive number.",
        )
        require(
            self.top_k is None or self.top_k >= 1,
            "top_k",
            self.top_k,
            "Give at least 1, or leave it out to keep all tokens.",
        )
        require(
            0 < self.top_p <= 1,
            "top_p",
            self.top_p,
            "Give a number above 0 and at most 1; 1 keeps all tokens.",
        )
        require(
            self.seed is None or 0 <= self.seed < 2**64,
            "seed",
            self.seed,
            "Give a whole number from 0 to 2**64 - 1, or leave it out for a random one.",
        )


class RequestStatus(Enum):
    """Where a request is: in the queue, in the batch, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One sequence of tokens on its way through the engine; the scheduler owns all that changes.

    `token_ids` is the prompt followed by everything generated:

        [0, num_computed_tokens)            keys and values are in the blocks of `block_table`
        [num_computed_tokens, num_tokens)   to be computed
        [num_prompt_tokens, num_tokens)     generated
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    max_tokens: int
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    arrival_s: float = 0.0
    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    block_table: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_new_tokens(self) -> int:
        """Tokens that are known but not computed yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        """A copy of the prompt."""
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the generated tokens."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end this request: the model's, unless ignored, and its own."""
        if self.params.ignore_eos:
            return self.params.stop_token_ids
        return self.eos_token_ids + self.params.stop_token_ids

    def append(self, token_id: int) -> FinishReason | None:
        """Add one generated token; return why the request ends with it, or None."""
        assert self.status is not RequestStatus.FINISHED, "a finished request grows no more"
        self.token_ids.append(token_id)
        num_output_tokens = self.num_output_tokens
        if token_id in self.stop_token_ids and num_output_tokens > self.params.min_tokens:
            return "stop"
        return "length" if num_output_tokens >= self.max_tokens else None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one engine step added to one request; the last one carries the finish reason.

    A token that stopped the request is part of `token_ids`.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request with all that was generated for it; `text` leaves special tokens out."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_preemptions: int
    text: str
