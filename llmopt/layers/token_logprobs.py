"""What is reported of one token: how likely it was, and which tokens were most likely instead.

Data only; knows nothing about tensors.
Law: log-probabilities are natural logarithms of the model's own distribution.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a token, its rank (1: the most likely), and the most likely tokens.

    `top` holds (token id, log-probability), most likely first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()
