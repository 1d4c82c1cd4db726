"""The positions at which two models differ most, each with its context and what both would say.

Knows nothing about how logits come about. The law it keeps: what it keeps is bounded, whatever the
number of positions that it is shown, and it is the largest of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.atlas_report import Guess, WorstToken
from llmopt.quality.divergence import TokenStatistics
from llmopt.quality.windows import Window

CONTEXT_CHARACTERS = 40
CONTEXT_TOKENS = 48  # enough for the characters, as nearly every token has one or more
NUM_GUESSES = 3


@dataclass(frozen=True, slots=True)
class _Place:
    """A position with the likeliest tokens of both models, (token id, probability) each."""

    kld: float
    window: int
    position: int  # of the right token
    base_probability: float
    target_probability: float
    base_guesses: tuple[tuple[int, float], ...]
    target_guesses: tuple[tuple[int, float], ...]


class WorstTokens:
    """Collects the `limit` positions with the largest divergence above 0."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._places: list[_Place] = []

    def add(
        self,
        window: int,
        first_position: int,
        base: Tensor,
        target: Tensor,
        statistics: TokenStatistics,
    ) -> None:
        """Look at consecutive positions of one window.

        first_position: of the right token of the first row. base, target: logits [n, V].
        statistics: of these n rows.
        """
        largest = statistics.kld.topk(min(self.limit, len(statistics.kld)))
        least = self._places[-1].kld if len(self._places) == self.limit else 0.0
        for kld, row in zip(largest.values.tolist(), largest.indices.tolist(), strict=True):
            if kld > least:
                place = _Place(
                    kld=kld,
                    window=window,
                    position=first_position + row,
                    base_probability=float(statistics.base_log_prob[row].exp()),
                    target_probability=float(statistics.target_log_prob[row].exp()),
                    base_guesses=_likeliest(base[row]),
                    target_guesses=_likeliest(target[row]),
                )
                self._places.append(place)
        self._places.sort(key=lambda place: -place.kld)
        del self._places[self.limit :]

    def collect(self, tokenizer: Tokenizer, windows: Sequence[Window]) -> tuple[WorstToken, ...]:
        """Everything kept, in words, the worst first. `windows` are all that were looked at."""
        return tuple(
            _describe(place, tokenizer, windows[place.window].token_ids.tolist())
            for place in self._places
        )


def _likeliest(logits: Tensor) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of logits [V] with their probabilities."""
    top = torch.softmax(logits.double(), dim=0).topk(min(NUM_GUESSES, len(logits)))
    return tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _describe(place: _Place, tokenizer: Tokenizer, token_ids: list[int]) -> WorstToken:
    position = place.position
    context = token_ids[max(0, position - CONTEXT_TOKENS) : position]
    following = token_ids[position + 1 : position + 1 + CONTEXT_TOKENS]

    def guesses(found: tuple[tuple[int, float], ...]) -> tuple[Guess, ...]:
        return tuple(Guess(token_text(tokenizer, context, i), p) for i, p in found)

    return WorstToken(
        window=place.window,
        position=position,
        kld=place.kld,
        before=tokenizer.decode(context)[-CONTEXT_CHARACTERS:],
        token=token_text(tokenizer, context, token_ids[position]),
        after=tokenizer.decode(following)[:CONTEXT_CHARACTERS],
        base_probability=place.base_probability,
        target_probability=place.target_probability,
        base_guesses=guesses(place.base_guesses),
        target_guesses=guesses(place.target_guesses),
    )


def token_text(tokenizer: Tokenizer, context: Sequence[int], token_id: int) -> str:
    """The text of a token behind others, with its leading space.

    Many tokenizers drop the space in front of a text's first token, so that a token alone does not
    show it. A token that has no text of its own, such as a special one, is its name.
    """
    before = tokenizer.decode(context)
    both = tokenizer.decode([*context, token_id])
    text = both[len(before) :] if both.startswith(before) else tokenizer.decode([token_id])
    return text or str(tokenizer.backend.convert_ids_to_tokens(token_id))
