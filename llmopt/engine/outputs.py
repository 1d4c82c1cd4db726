"""What a user gets: parts of texts as they come, and whole outputs.

Data only; knows nothing about how it came about.
Law: the outputs of a prompt are in order, the best first where one was asked for.
"""

from dataclasses import dataclass

from llmopt.engine.request import FinishReason, StepOutput
from llmopt.layers.token_logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one step added to one output.

    `step` has the tokens, which may be ahead of `text`: an incomplete character and what may become
    a stop string are held back. `index` numbers the outputs of one prompt. `stop_reason` is the
    stop string, or the token that stopped it.
    """

    index: int
    text: str
    step: StepOutput
    stop_reason: str | int | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that the step added."""
        return self.step.token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the output ends here, or None."""
        return self.step.finish_reason


@dataclass(frozen=True, slots=True)
class Completion:
    """One output of a prompt.

    `text` leaves out special tokens and the stop. `token_ids` have all that were generated, with
    those of the stop. `logprobs` are of each of them, if they were asked for.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Log-probability of the output; None if it was not asked for."""
        if self.logprobs is None:
            return None
        return sum(token.logprob for token in self.logprobs)

    @property
    def mean_logprob(self) -> float | None:
        """Log-probability per token, by which outputs of different lengths are compared."""
        total = self.cumulative_logprob
        return None if total is None else total / max(1, len(self.token_ids))


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt with its outputs; what one has is also had of the first."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    num_preemptions: int = 0
    num_prefix_hit_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of the first output."""
        return self.completions[0].token_ids

    @property
    def text(self) -> str:
        """Of the first output."""
        return self.completions[0].text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Of the first output."""
        return self.completions[0].finish_reason
