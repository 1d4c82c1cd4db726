"""What a damage atlas says: which parts of a model cause its loss, and at which tokens it shows.

Knows nothing about how any of it was measured; imports no torch. The law: everything that a table
or a page shows is in here, as values that the result codec writes and reads back.
"""

from dataclasses import dataclass
from typing import Literal

from llmopt.results.schema import Interval, QualityRecord

PartKind = Literal["embedding", "block", "attention", "mlp", "final norm", "head"]
HALVES: frozenset[PartKind] = frozenset({"attention", "mlp"})


@dataclass(frozen=True, slots=True)
class AtlasPart:
    """The base with one part of the target in it, against the base as it was."""

    label: str  # "block 3", "block 3 attention", "head"
    kind: PartKind
    layer: int | None  # of a block, from 0 as in the checkpoint's names; None outside the blocks
    kld_mean: float  # nats per token
    kld_mean_ci: Interval
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that a model thinks likely."""

    token: str
    probability: float


@dataclass(frozen=True, slots=True)
class WorstToken:
    """A position at which the two models differ most, in its context."""

    window: int  # from 0
    position: int  # of the right token in the window, from 0
    kld: float
    before: str  # the last characters in front of the right token
    token: str  # the right one: what the text goes on with
    after: str
    base_probability: float  # of the right token
    target_probability: float
    base_guesses: tuple[Guess, ...]  # the likeliest, likeliest first
    target_guesses: tuple[Guess, ...]


@dataclass(frozen=True, slots=True)
class AtlasReport:
    """Where the loss of a model comes from and where it shows.

    `quality` is of the whole target: its loss by position and by the base's confidence too. `parts`
    are blocks in order, each followed by its halves if they were asked for, and those of embedding,
    final norm and head that differ from the base's. `parts_kld_sum` adds up the parts that do not
    overlap, that is, all but the halves.
    """

    target_name: str
    quality: QualityRecord
    parts: tuple[AtlasPart, ...]
    parts_kld_sum: float
    worst_tokens: tuple[WorstToken, ...]

    @property
    def whole_parts(self) -> tuple[AtlasPart, ...]:
        """Whole blocks and what is outside of them: the parts that do not overlap."""
        return tuple(part for part in self.parts if part.kind not in HALVES)

    @property
    def halves(self) -> tuple[AtlasPart, ...]:
        """Attention and MLP of each block, in turn; empty if the blocks were not split."""
        return tuple(part for part in self.parts if part.kind in HALVES)

    @property
    def additivity(self) -> float | None:
        """The whole loss over the sum of the parts' losses; None if no part lost anything.

        About 1: the parts' errors are independent. Below 1 they cancel, above 1 they reinforce
        each other.
        """
        return self.quality.kld_mean / self.parts_kld_sum if self.parts_kld_sum > 0 else None
