"""How to guess the next tokens, as a user says it.

Knows nothing about models, requests or tensors.
Law: a config that exists makes sense by itself; whether its model can be had is found out when it
is loaded.
"""

from dataclasses import dataclass
from typing import Literal

from llmopt.errors import UsageError

DraftSampling = Literal["rejection", "shared"]
DEFAULT_DRAFT_TOKENS = 5
MAX_DRAFT_TOKENS = 32
_FORMS = "ngram, draft:MODEL, self-quantized:4, self-quantized:8, or layers:N"


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """Speculative decoding.

    Args:
        proposer: who guesses: "ngram" (what followed the last tokens when they occurred before),
            "draft:MODEL" (a smaller model with the same tokens: an alias, a directory or a hub id),
            "self-quantized:BITS" (the model's own linear layers, rounded to 4 or 8 bits), or
            "layers:N" (the model's own first N layers).
        num_draft_tokens: most tokens that are guessed at once.
        adaptive: guess fewer, or none, where the measured acceptance and times say that it is
            faster; otherwise always as many as may be used.
        draft_sampling: how a draft model guesses for requests that sample. "rejection" takes most
            tokens; with "shared" the draft model draws with the request's own random numbers, so
            that a seed gives the tokens that it gives without speculation.
        min_ngram, max_ngram: lengths of what "ngram" looks up, the longest first.
        synthetic_acceptance: the chance that a drafted token is taken, whatever the model says, to
            measure speed with random weights. The output means nothing. None: never.

    Raises:
        UsageError: an unknown form of `proposer`, or a number out of its range.
    """

    proposer: str = "ngram"
    num_draft_tokens: int = DEFAULT_DRAFT_TOKENS
    adaptive: bool = True
    draft_sampling: DraftSampling = "rejection"
    min_ngram: int = 2
    max_ngram: int = 4
    synthetic_acceptance: float | None = None

    def __post_init__(self) -> None:
        self.parse()
        if not 0 <= self.num_draft_tokens <= MAX_DRAFT_TOKENS:
            raise UsageError(
                f"num_draft_tokens is {self.num_draft_tokens}",
                f"Give a number from 0 to {MAX_DRAFT_TOKENS}.",
            )
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise UsageError(
                f"min_ngram is {self.min_ngram} and max_ngram is {self.max_ngram}",
                "Give whole numbers of at least 1, the smaller one first.",
            )
        rate = self.synthetic_acceptance
        if rate is not None and not 0 <= rate <= 1:
            raise UsageError(f"synthetic_acceptance is {rate}", "Give a number from 0 to 1.")
        if self.draft_sampling not in ("rejection", "shared"):
            raise UsageError(
                f"draft_sampling is {self.draft_sampling!r}", "Give rejection or shared."
            )

    def parse(self) -> tuple[str, str]:
        """The kind of proposer and its argument, "" for none. Raises UsageError."""
        kind, _, argument = self.proposer.partition(":")
        valid = {
            "ngram": argument == "",
            "draft": argument != "",
            "self-quantized": argument in ("4", "8"),
            "layers": argument.isdecimal() and int(argument) >= 1,
        }
        if not valid.get(kind, False):
            raise UsageError(f"speculation is {self.proposer!r}", f"Give {_FORMS}.")
        return kind, argument
