"""The definition of a draw from logits: temperature, top-k, top-p, min-p, and the inverse of the
cumulative distribution at a number of a seeded stream.

1. Logits are divided by the temperature: scores.
2. top-k keeps the k greatest scores and those tied with the last of them; softmax of what is left.
3. top-p keeps the smallest set of greatest probabilities whose sum reaches p, and ties.
4. min-p keeps probabilities of at least min_p times the greatest (Nguyen et al., 2024).
5. The token is the first, in the order of the vocabulary, at which the cumulative sum of what is
   kept exceeds u times the whole sum, with u = uniform(seed, position).

Temperature 0 is the greatest logit, the first of equal ones. The noise of Gumbel, which other
samplers add to the logits to draw in one pass, is not needed: this draw is exact, and one number
for each token is all that it takes from the stream.
"""

import torch

_MASK64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """The number at `position` of the random stream `seed`: in [0, 1), 53 bits.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), entered at any position: its state is a counter
    of golden-ratio steps. The seed is mixed first, so that streams of neighbouring seeds do not
    overlap.
    """
    state = (_mix(seed + _GOLDEN_GAMMA) + (position + 1) * _GOLDEN_GAMMA) & _MASK64
    return float((_mix(state) >> 11) * 2.0**-53)


def kept_probs_reference(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """What a row of logits [V] leaves to draw from, float64 [V], not normalized."""
    scores = logits.double() / temperature
    if top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    probs = torch.softmax(scores, dim=-1)
    if top_p < 1:
        ranked = probs.sort(descending=True).values
        last = int((ranked.cumsum(-1) < top_p).sum().clamp(max=len(probs) - 1))
        probs = probs.masked_fill(probs < ranked[last], 0)
    return probs.masked_fill(probs < min_p * probs.max(), 0)


def sample_reference(
    logits: torch.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> int:
    """The token of one row of logits [V]."""
    if temperature == 0:
        return int(logits.argmax())
    cdf = kept_probs_reference(logits, temperature, top_k, top_p, min_p).cumsum(-1)
    target = uniform(seed, position) * cdf[-1]
    return int(torch.searchsorted(cdf, target, right=True))


def _mix(state: int) -> int:
    state &= _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)
