"""Token by token, how far one distribution over the vocabulary is from another.

Knows nothing about models, windows or averages: logits in, one number per position out. The law it
keeps: equal logits give a divergence of exactly 0, and every result is finite or the caller hears
of it (`TokenStatistics.is_finite`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 21  # temporaries of 8 MiB: more costs page faults, less thread barriers


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Statistics of n scored positions, each [n] on the CPU; natural logarithms throughout."""

    kld: Tensor  # float64, KL(base || target) in nats, >= 0
    same_top1: Tensor  # bool, both put the same token first
    base_log_prob: Tensor  # float64, log-probability of the token that really follows
    target_log_prob: Tensor  # float64
    base_confidence: Tensor  # float64, probability of the base's most likely token

    @property
    def is_finite(self) -> bool:
        """Whether no NaN or infinity came out, which broken weights or an overflow produce."""
        columns = (self.kld, self.base_log_prob, self.target_log_prob)
        return all(bool(column.isfinite().all()) for column in columns)


def compare_logits(base: Tensor, target: Tensor, next_tokens: Tensor) -> TokenStatistics:
    """Compare two sets of logits position by position.

    base, target: [n, V], any floating dtype, on any device; log-probabilities serve as well.
    next_tokens: int64 [n]. Exponentials are taken in float32 and summed in float64. The true
    divergence is never negative; rounding that makes it so (about 1e-8) is clamped to 0.
    On a tie the first token counts as the top one, as greedy sampling has it.

    KL(b || t) = sum_v p_b(v) * (log p_b(v) - log p_t(v)) (Kullback and Leibler 1951).
    """
    assert base.shape == target.shape, f"logits of {base.shape} against {target.shape}"
    assert next_tokens.shape == base.shape[:1], f"{next_tokens.shape} next tokens for {base.shape}"
    num_rows = max(1, CHUNK_ELEMENTS // base.shape[1])
    chunks = [
        _compare_rows(base_rows.to(target.device), target_rows, tokens.to(target.device))
        for base_rows, target_rows, tokens in zip(
            torch.split(base, num_rows),
            torch.split(target, num_rows),
            torch.split(next_tokens, num_rows),
            strict=True,
        )
    ]
    return concatenate(chunks)


def concatenate(parts: list[TokenStatistics]) -> TokenStatistics:
    """Put the statistics of consecutive positions one after the other."""
    return TokenStatistics(
        kld=torch.cat([part.kld for part in parts]),
        same_top1=torch.cat([part.same_top1 for part in parts]),
        base_log_prob=torch.cat([part.base_log_prob for part in parts]),
        target_log_prob=torch.cat([part.target_log_prob for part in parts]),
        base_confidence=torch.cat([part.base_confidence for part in parts]),
    )


def _compare_rows(base: Tensor, target: Tensor, next_tokens: Tensor) -> TokenStatistics:
    """Compare one chunk that fits in memory several times over."""
    same_top1 = base.argmax(dim=1) == target.argmax(dim=1)
    base, target = _shift_to_maximum(base), _shift_to_maximum(target)  # [n, V]
    base_exp = base.exp()
    base_sum = base_exp.sum(dim=1, dtype=torch.float64)  # [n]
    target_sum = target.exp().sum(dim=1, dtype=torch.float64)
    log_normalizer_gap = target_sum.log() - base_sum.log()
    column = next_tokens.unsqueeze(1)
    base_log_prob = base.gather(1, column).squeeze(1).double() - base_sum.log()
    target_log_prob = target.gather(1, column).squeeze(1).double() - target_sum.log()
    weighted_gap = base_exp.mul_(base.sub_(target)).sum(dim=1, dtype=torch.float64)
    kld = (weighted_gap / base_sum + log_normalizer_gap).clamp_(min=0.0)
    return TokenStatistics(
        kld=kld.cpu(),
        same_top1=same_top1.cpu(),
        base_log_prob=base_log_prob.cpu(),
        target_log_prob=target_log_prob.cpu(),
        base_confidence=base_sum.reciprocal().cpu(),
    )


def _shift_to_maximum(logits: Tensor) -> Tensor:
    """Subtract each row's maximum -> new float32 [n, V]."""
    logits = logits.float()
    return logits - logits.amax(dim=1, keepdim=True)
