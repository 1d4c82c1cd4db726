"""A distribution over the vocabulary in little more than one byte per token.

Knows nothing about files or models. The law it keeps: the likeliest tokens and the right one come
back exactly, and the others keep their total probability. So a perplexity loses nothing, and of a
divergence only how probability is divided among unlikely tokens is rounded.

Of each row the 256 largest logits and that of the right token are kept in float32. Each other one
is a code of 8 bits for its distance x below the largest of them,

    code = 255 * (1 - exp(-x / s)) / (1 - exp(-r / s)),

with r the row's largest distance. Steps are thus finest where the probability is and grow with s
(companding: Panter and Dite 1951; the best density of steps goes with the cube root of the
probability's). A step of d nats costs about d^2 / 24 times the probability that it holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_EXACT = 256
DECAY_NATS = 5.0  # s; 4 to 6 cost the same
MAX_REACH_NATS = 40.0  # further below all probability is less than float32 resolves
_MIN_REACH_NATS = 1e-3
_MAX_CODE = 255


@dataclass(frozen=True, slots=True, eq=False)
class CompactRows:
    """Rows of logits, relative to each row's maximum, on the CPU.

    K exact tokens per row, of which one may be there twice.
    """

    codes: Tensor  # uint8 [n, V]
    exact_logits: Tensor  # float32 [n, K]
    exact_tokens: Tensor  # int32 [n, K]
    tail: Tensor  # float32 [n, 2]: logit of code 0, and 1 - exp(-r / s)

    def rows(self, start: int, stop: int) -> "CompactRows":
        """Some of the rows."""
        return CompactRows(
            self.codes[start:stop],
            self.exact_logits[start:stop],
            self.exact_tokens[start:stop],
            self.tail[start:stop],
        )


def encode(logits: Tensor, next_tokens: Tensor) -> CompactRows:
    """Compact finite logits [n, V], V >= 3, of any floating dtype on any device.

    next_tokens: int64 [n], the right token of each row
    """
    logits = logits.float()
    logits = logits - logits.amax(dim=1, keepdim=True)  # [n, V], as all below
    likeliest = torch.topk(logits, min(NUM_EXACT, logits.shape[1] - 2), dim=1).indices
    exact_tokens = torch.cat([likeliest, next_tokens.to(logits.device).unsqueeze(1)], dim=1)
    exact_logits = logits.gather(1, exact_tokens)  # [n, K]
    least = logits.amin(dim=1, keepdim=True)  # [n, 1]
    tail = logits.scatter(1, exact_tokens, -torch.inf)
    top = tail.amax(dim=1, keepdim=True)  # [n, 1]
    tail_mass = tail.exp().sum(dim=1, keepdim=True, dtype=torch.float64)
    reach = (top - least).clamp_(_MIN_REACH_NATS, MAX_REACH_NATS)
    span = -torch.expm1(-reach / DECAY_NATS)  # [n, 1]
    distance = tail.sub_(top).neg_().clamp_(max=MAX_REACH_NATS)  # exact tokens: the largest
    fraction = distance.div_(-DECAY_NATS).expm1_().neg_().div_(span)
    codes = fraction.mul_(_MAX_CODE).round_().clamp_(0, _MAX_CODE).to(torch.uint8)
    decoded = _expand(codes, top, span).scatter_(1, exact_tokens, -torch.inf)
    decoded_mass = decoded.exp_().sum(dim=1, keepdim=True, dtype=torch.float64)
    # Tokens of no probability at all, such as a padded vocabulary's, have no mass to keep.
    correction = torch.where(tail_mass > 0, (tail_mass / decoded_mass).log(), 0.0)
    return CompactRows(
        codes=codes.cpu(),
        exact_logits=exact_logits.cpu(),
        exact_tokens=exact_tokens.to(torch.int32).cpu(),
        tail=torch.cat([top + correction.float(), span], dim=1).cpu(),
    )


def decode(rows: CompactRows) -> Tensor:
    """Logits of compact rows -> float32 [n, V] on the CPU, relative to each row's maximum."""
    logits = _expand(rows.codes, rows.tail[:, :1], rows.tail[:, 1:])
    return logits.scatter_(1, rows.exact_tokens.long(), rows.exact_logits)


def concatenate_rows(parts: list[CompactRows]) -> CompactRows:
    """Put consecutive rows one after the other."""
    return CompactRows(
        codes=torch.cat([part.codes for part in parts]),
        exact_logits=torch.cat([part.exact_logits for part in parts]),
        exact_tokens=torch.cat([part.exact_tokens for part in parts]),
        tail=torch.cat([part.tail for part in parts]),
    )


def _expand(codes: Tensor, top: Tensor, span: Tensor) -> Tensor:
    """Logits of the codes -> float32 [n, V]. top, span: [n, 1]"""
    return codes.float().mul_(-span / _MAX_CODE).log1p_().mul_(DECAY_NATS).add_(top)
