"""Drafts whose acceptance is given, not earned: the speed of speculation without real weights.

Knows nothing about how the drafts within are made.
Law: a draft costs what it costs with real weights; the output means nothing.
"""

from collections.abc import Sequence

from llmopt.engine.request import Request
from llmopt.engine.speculation.proposer import Proposer
from llmopt.layers.rejection_sampler import Draft
from llmopt.layers.sampler import uniform

_STREAM = 0x8EBC6AF09C88C6E3


class SyntheticProposer:
    """Proposes as `proposer` does, always up to the limit, and says how much is to be taken.

    Each token is taken with the chance `acceptance` if those before it were, independently; the
    draw follows from the request's seed and the token's position.
    """

    def __init__(self, proposer: Proposer, acceptance: float) -> None:
        self.proposer = proposer
        self._acceptance = acceptance

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """Drafts of exactly their limits; what is missing repeats the last known token."""
        drafts = self.proposer.propose(requests, limits)
        return [
            self._fill(request, limit, draft)
            for request, limit, draft in zip(requests, limits, drafts, strict=True)
        ]

    def forget(self, request_id: str) -> None:
        """The request ended or was aborted."""
        self.proposer.forget(request_id)

    def _fill(self, request: Request, limit: int, draft: Draft) -> Draft:
        num_taken = 0
        while num_taken < limit and self._takes(request, num_taken):
            num_taken += 1
        padding = request.token_ids[-1:] * (limit - len(draft))
        return Draft((*draft.token_ids, *padding), None, num_taken)

    def _takes(self, request: Request, offset: int) -> bool:
        position = request.num_output_tokens + offset
        return uniform(request.seed ^ _STREAM, position) < self._acceptance
