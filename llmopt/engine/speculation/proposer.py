"""What the engine asks of whoever guesses the next tokens.

Knows nothing about verification or about how many guesses pay.
Law: a proposer may be wrong but never harmful: whatever it proposes, the output is the target's.
"""

from collections.abc import Sequence
from typing import Protocol

from llmopt.engine.request import Request
from llmopt.layers.rejection_sampler import Draft


class Proposer(Protocol):
    """Guesses what follows the known tokens of requests.

    There is no call for what became of a draft: it is what the request's tokens say at the next
    one, and a request that was preempted in between has the same tokens.
    """

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """A draft for each request, of at most its limit (at least 1), perhaps none."""

    def forget(self, request_id: str) -> None:
        """The request ended or was aborted; it may be unknown here."""
