"""The data of the runtime: what is asked for, how far it has come, what comes out.

Knows nothing about tensors, blocks' contents or text.
Law: `0 <= num_computed_tokens < num_tokens` while a request is unfinished, and generated tokens are
never taken back once they are known, whatever happens to the blocks.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from llmopt.engine.prefix_cache import BlockKey
from llmopt.engine.sampling_params import SamplingParams
from llmopt.layers.token_logprobs import TokenLogprobs

# "error": its constraint got too complex to be followed, so that the output may not match.
FinishReason = Literal["stop", "length", "abort", "error"]
BlockTable = list[int | None]  # None: a block outside the window, freed


PENDING_TOKEN = -1  # stands for a token that the device has not told yet


class RequestStatus(Enum):
    """Where a request is: in the queue, in the batch, without blocks and waiting for its last token
    only, or done.
    """

    WAITING = "waiting"
    RUNNING = "running"
    ENDING = "ending"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One sequence of tokens on its way through the engine; the scheduler owns all that changes.

    `token_ids` is the prompt followed by everything generated:

        [0, num_computed_tokens)            keys and values are in the blocks of `block_tables`
        [num_computed_tokens, num_tokens)   to be computed
        [num_prompt_tokens, num_tokens)     generated

    Block tables are one per layer group, and all of one length. `host_tables` name blocks in host
    memory while the request is swapped out. Requests of smaller `priority` numbers go first where
    the policy asks for it. Only requests of one `cache_salt` share cached prefixes. `parent` is a
    request with the same prompt, whose blocks this one shares. `prompt_logprobs` are those computed
    so far. The last `num_pending_tokens` of `token_ids` are sampled and not known to the host.
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
    priority: int = 0
    cache_salt: str = ""
    parent: "Request | None" = field(default=None, repr=False)
    rank: tuple[int, int] = (0, 0)
    num_prefix_hit_tokens: int = 0
    num_registered_blocks: int = 0
    num_pending_tokens: int = 0
    needs_host_tokens: bool = False
    block_tables: tuple[BlockTable, ...] = ()
    host_tables: tuple[BlockTable, ...] = ()
    block_keys: list[BlockKey] = field(default_factory=list, repr=False)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list, repr=False)

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens, pending ones too."""
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

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether the log-probabilities of its prompt are still to be computed.

        Those of samples that share a prompt are computed with the first of them.
        """
        return (
            self.params.prompt_logprobs is not None
            and self.parent is None
            and len(self.prompt_logprobs) < self.num_prompt_tokens - 1
        )

    def append(self, token_id: int) -> FinishReason | None:
        """Add one generated token; return why the request ends with it, or None."""
        assert self.status is not RequestStatus.FINISHED, "a finished request grows no more"
        self.token_ids.append(token_id)
        return self._finish_reason(token_id, self.num_output_tokens)

    def append_pending(self) -> None:
        """Add one generated token that is not known yet."""
        self.token_ids.append(PENDING_TOKEN)
        self.num_pending_tokens += 1

    def settle(self, token_id: int) -> FinishReason | None:
        """Learn the first pending token; where the request ends with it, forget those behind it.

        Returns why the request ends with it, or None.
        """
        assert self.num_pending_tokens > 0, "only a token that was sampled is told"
        index = self.num_tokens - self.num_pending_tokens
        self.token_ids[index] = token_id
        self.num_pending_tokens -= 1
        reason = self._finish_reason(token_id, index + 1 - self.num_prompt_tokens)
        if reason is not None:
            del self.token_ids[index + 1 :]
            self.num_pending_tokens = 0
        return reason

    def output(self, token_ids: tuple[int, ...], reason: FinishReason | None) -> "StepOutput":
        """What a step added that gave these tokens."""
        return StepOutput(
            self.request_id, token_ids, reason, self.num_preemptions, self.num_prefix_hit_tokens
        )

    def _finish_reason(self, token_id: int, num_output_tokens: int) -> FinishReason | None:
        if token_id in self.stop_token_ids and num_output_tokens > self.params.min_tokens:
            return "stop"
        return "length" if num_output_tokens >= self.max_tokens else None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one engine step added to one request; the last one carries the finish reason.

    A token that stopped the request is part of `token_ids`. `num_prefix_hit_tokens` of the prompt
    were found in the prefix cache. `logprobs` has one for each token, and `prompt_logprobs`, with
    the first output, one for each token of the prompt behind its first, where they were asked for.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_prefix_hit_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
