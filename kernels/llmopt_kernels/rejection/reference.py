"""The definition of which drafted tokens of a request are taken (Leviathan, Kalman and Matias,
2023; Chen et al., 2023).

p are the probabilities of the target, q those that a token was drawn from. Token j is taken if
u * q(token) < p(token) with u = uniform(seed ^ TAKE_STREAM, position), all before it being taken.
The first one that is not is replaced by a draw from max(0, p - q): the inverse of its cumulative
sums, at uniform(seed ^ REPLACE_STREAM, position) times their whole. Where rounding leaves nothing
of it, the draw is from p.
A guess, which has no q, is taken while it is the token that the target itself draws.
"""

from collections.abc import Sequence

import torch

from llmopt_kernels.sampling.reference import uniform

TAKE_STREAM = 0xD6E8FEB86659FD93
REPLACE_STREAM = 0xA0761D6478BD642F


def reject_reference(
    target: torch.Tensor,
    proposed: torch.Tensor,
    token_ids: Sequence[int],
    seed: int,
    first_position: int,
) -> tuple[int, int | None]:
    """How many drawn tokens are taken, and what replaces the next one; None if all are.

    target, proposed: probabilities [k, V] of k tokens, at positions from `first_position` on.
    """
    for j, token_id in enumerate(token_ids):
        p, q, position = target[j].double(), proposed[j].double(), first_position + j
        if uniform(seed ^ TAKE_STREAM, position) * q[token_id] < p[token_id]:
            continue
        residual = (p - q).clamp(min=0)
        cdf = (residual if residual.sum() > 0 else p).cumsum(-1)
        draw = uniform(seed ^ REPLACE_STREAM, position) * cdf[-1]
        return j, int(torch.searchsorted(cdf, draw, right=True))
    return len(token_ids), None


def count_guessed_reference(guesses: Sequence[int], drawn: Sequence[int]) -> int:
    """How many guesses are taken; drawn: the target's own tokens, one more than guesses."""
    for j, guess in enumerate(guesses):
        if guess != drawn[j]:
            return j
    return len(guesses)
