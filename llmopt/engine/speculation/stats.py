"""What speculation did, in counters, and what that says about its worth.

Knows nothing about clocks; times are given.
Law: counters only grow; rates are computed from counters, never counted.
"""

from dataclasses import dataclass, field

_BISECTIONS = 40


@dataclass(slots=True)
class SpeculationStats:
    """Counters since the engine was made.

    A decode is a step in which one request that had one token to compute got tokens;
    `num_decode_tokens` counts these tokens, which are one for each decode and those taken from its
    draft. By position: how often the i-th token of a draft was there, and was taken. Times are of
    the steps in which nothing but decodes was computed: of drafting, and of the model.
    """

    num_decodes: int = 0
    num_decode_tokens: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    draft_s: float = 0.0
    model_s: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of drafted tokens that were taken."""
        return self.num_accepted_tokens / max(1, self.num_draft_tokens)

    @property
    def acceptance_by_position(self) -> list[float]:
        """Share of the i-th drafted tokens that were taken."""
        pairs = zip(self.accepted_by_position, self.drafted_by_position, strict=True)
        return [taken / drafted for taken, drafted in pairs]

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a request in one decode; 1 without speculation."""
        return self.num_decode_tokens / max(1, self.num_decodes)

    @property
    def mean_draft_tokens(self) -> float:
        """Tokens of a draft."""
        return self.num_draft_tokens / max(1, self.num_drafts)

    def count_decode(self, num_drafted: int, num_taken: int) -> None:
        """Count one decode, with `num_taken` of `num_drafted` tokens taken."""
        self.num_decodes += 1
        self.num_decode_tokens += num_taken + 1
        if num_drafted == 0:
            return
        self.num_drafts += 1
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_taken
        missing = num_drafted - len(self.drafted_by_position)
        self.drafted_by_position += [0] * missing
        self.accepted_by_position += [0] * missing
        for position in range(num_drafted):
            self.drafted_by_position[position] += 1
            self.accepted_by_position[position] += position < num_taken


def break_even_acceptance(num_draft_tokens: int, relative_cost: float) -> float | None:
    """The acceptance of each token at which a draft gains nothing; None: no acceptance is enough.

    A draft of k tokens, each taken with probability a if those before it were, gives
    1 + a + ... + a^k tokens (Leviathan et al., 2023, equation 1).

    Args:
        num_draft_tokens: k, at least 1.
        relative_cost: time of drafting and checking, in steps of the model without a draft.
    """
    if relative_cost > num_draft_tokens + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if sum(middle**i for i in range(num_draft_tokens + 1)) < relative_cost:
            low = middle
        else:
            high = middle
    return high
