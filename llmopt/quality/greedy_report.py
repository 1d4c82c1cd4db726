"""What a comparison of greedy outputs says: where each output first departs from the base's.

Knows nothing about how it was measured; imports no torch. The law: a position counts the tokens of
the output that both have in common before it, so 0 is the first generated token.
"""

from dataclasses import dataclass

from llmopt.results.schema import Interval


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """Where a greedy output departs from the base's, and how sure the base was there.

    gap: between the base's two likeliest tokens, in probability and in nats (of log-probability).
    chosen_gap_nats: between the base's token and the one that the model chose, as the base sees
    them; the same as `gap_nats` where the model chose the base's second. near_tie: rounding alone
    moves gaps that far (see `GreedyReport.near_tie_nats`); None: not known.
    """

    position: int
    base_token: str
    token: str
    gap: float
    gap_nats: float
    chosen_gap_nats: float
    near_tie: bool | None


@dataclass(frozen=True, slots=True)
class GreedyPrompt:
    """One prompt: what the base generated, and where the model would have gone another way."""

    prompt: str
    base_output: str
    num_tokens: int  # of the base's output
    difference: FirstDifference | None  # None: the outputs are the same to the end


@dataclass(frozen=True, slots=True)
class GreedyRun:
    """A model against the base on all prompts. Shares are of prompts, unless they say otherwise."""

    name: str
    prompts: tuple[GreedyPrompt, ...]
    diverged: float  # the outputs differ somewhere
    diverged_ci: Interval
    damaged: float | None  # they first differ where the base was not near a tie
    damaged_ci: Interval | None
    near_ties: float | None  # share of the divergences; None: none, or ties are not known
    median_position: int | None  # None: at least half of the outputs are the same to the end
    flips: float  # share of the tokens on the base's own path that the model would not choose
    flips_ci: Interval
    flips_beyond_noise: float | None  # those of them that are no near ties


@dataclass(frozen=True, slots=True)
class GreedyReport:
    """Greedy outputs of a target against its base; `noise` is the base in its 16-bit dtype.

    near_tie_nats: a gap below this is a near tie. None: there was no noise run to derive it from.
    """

    base_name: str
    prompt_source: str  # in words: where the prompts come from
    max_new_tokens: int
    num_tokens: int  # of all outputs of the base
    near_tie_nats: float | None
    target: GreedyRun
    noise: GreedyRun | None
    confidence: float = 0.95
