"""The drafts of a batch as tensors that the kernels take.

Knows no kernel. A request of a draft of k tokens has k + 1 rows of logits, one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

NUM_FIELDS = 5


class DraftKind(IntEnum):
    """How it is decided how many tokens of a draft are taken."""

    GUESSED = 0  # while the target draws the same
    DRAWN = 1  # by rejection sampling
    FORCED = 2  # as many as are told


@dataclass(frozen=True, slots=True)
class DraftFacts:
    """A request's draft; `num_taken` counts for forced ones only."""

    token_ids: Sequence[int]
    kind: DraftKind
    num_taken: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class DraftParams:
    """What the kernels take.

    requests: int64 [5, B]: first row, number of tokens, kind, number taken if forced, first row in
        `probs` if drawn.
    token_ids: int64 [R]: the token that was drafted to follow each row; 0 behind the last of each.
    probs: [n, V], what the n tokens of drawn drafts were drawn from; None: no draft is drawn.
    """

    requests: torch.Tensor
    token_ids: torch.Tensor
    probs: torch.Tensor | None

    def to(self, device: torch.device) -> "DraftParams":
        """A copy on a device; it does not wait for what is in pinned memory."""
        return DraftParams(
            self.requests.to(device, non_blocking=True),
            self.token_ids.to(device, non_blocking=True),
            None if self.probs is None else self.probs.to(device, non_blocking=True),
        )


def pack_drafts(
    drafts: Sequence[DraftFacts], probs: torch.Tensor | None, *, pinned: bool
) -> DraftParams:
    """Drafts on the host; `probs` has a row for each token of the drawn ones, in their order."""
    fields: list[tuple[int, ...]] = []
    token_ids: list[int] = []
    first_prob = 0
    for draft in drafts:
        length = len(draft.token_ids)
        fields.append((len(token_ids), length, draft.kind, draft.num_taken, first_prob))
        token_ids += [*draft.token_ids, 0]
        first_prob += length if draft.kind == DraftKind.DRAWN else 0
    assert first_prob == (0 if probs is None else len(probs)), "probabilities of each drawn token"
    requests = torch.empty((NUM_FIELDS, len(drafts)), dtype=torch.int64, pin_memory=pinned)
    rows = torch.empty(len(token_ids), dtype=torch.int64, pin_memory=pinned)
    if drafts:
        requests.copy_(torch.tensor(fields).T)
        rows.copy_(torch.tensor(token_ids))
    return DraftParams(requests, rows, probs)
