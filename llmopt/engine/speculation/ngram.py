"""Prompt lookup: what followed the last tokens of a request when they occurred in it before.

Free of any model, and right where output repeats its input: summaries, edits, code, extraction
(Saxena, "Prompt lookup decoding", 2023).
Knows nothing about models or tensors.
Law: each token is indexed once, so that a step costs as much as it added and guesses.
"""

from collections.abc import Sequence

from llmopt.engine.request import Request
from llmopt.layers.rejection_sampler import Draft


class NgramProposer:
    """Looks up the longest of the last `max_ngram` to `min_ngram` tokens, its last occurrence."""

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        assert 1 <= min_ngram <= max_ngram, "lengths of n-grams go up"
        self._lengths = range(max_ngram, min_ngram - 1, -1)
        self._indices: dict[str, NgramIndex] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """A draft for each request, empty where its last tokens are new."""
        drafts: list[Draft] = []
        for request, limit in zip(requests, limits, strict=True):
            index = self._indices.get(request.request_id)
            if index is None:
                index = self._indices[request.request_id] = NgramIndex(self._lengths)
            index.extend(request.token_ids)
            drafts.append(Draft(index.continue_(request.token_ids, limit)))
        return drafts

    def forget(self, request_id: str) -> None:
        """Drop the index of a request."""
        self._indices.pop(request_id, None)


class NgramIndex:
    """Where each n-gram of a growing sequence last ended, of those that something follows.

    Args:
        lengths: of the n-grams, the longest first.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._ends: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in lengths}
        self._num_indexed = 1

    def extend(self, token_ids: Sequence[int]) -> None:
        """Index what was added to the sequence since the last time."""
        for end in range(self._num_indexed, len(token_ids)):
            for length, ends in self._ends.items():
                if length <= end:
                    ends[tuple(token_ids[end - length : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids))

    def continue_(self, token_ids: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        """What followed the end of the sequence before, up to `num_tokens`; () if nothing did.

        A continuation that reaches the end goes on with itself: a sequence that repeats is expected
        to repeat on.
        """
        for length, ends in self._ends.items():
            end = ends.get(tuple(token_ids[-length:]))
            if end is not None:
                known = token_ids[end : end + num_tokens]
                return tuple(known[i % len(known)] for i in range(num_tokens))
        return ()
