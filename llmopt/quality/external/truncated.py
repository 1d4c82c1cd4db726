"""Comparison with a target that tells the probabilities of some tokens only.

Servers report, for every token of a prompt, the likeliest few tokens and the one that follows.
Perplexity and top-1 agreement are exact from that. The divergence is a lower bound: all tokens that
the target does not name count as one, in both distributions, and no such grouping can raise a
Kullback-Leibler divergence (log sum inequality; Cover and Thomas, Elements of Information Theory,
theorem 2.7.1). Knows nothing of servers. The law: the bound is never above the divergence.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from llmopt.errors import ModelError, UsageError
from llmopt.quality.divergence import TokenStatistics, concatenate
from llmopt.quality.scores import OnWindow, Scores
from llmopt.quality.source import LogitSource
from llmopt.quality.stopping import PrecisionGoal
from llmopt.quality.windows import EvaluationWindows, Window

# What float32 log-probabilities may be wrong by when they are summed up: the rest that they leave
# is taken to be larger by this, which makes the bound lower.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class TruncatedLogProbs:
    """What a target tells of n positions, k tokens each at most; natural logarithms."""

    token_ids: Tensor  # int64 [n, k]
    log_probs: Tensor  # float64 [n, k], of those tokens; the likeliest token is among them
    is_reported: Tensor  # bool [n, k], False where a position names fewer than k tokens
    next_log_probs: Tensor  # float64 [n], of the token that really follows

    def rows(self, start: int, stop: int) -> "TruncatedLogProbs":
        """The positions from `start` to `stop`, without that one."""
        return TruncatedLogProbs(
            self.token_ids[start:stop],
            self.log_probs[start:stop],
            self.is_reported[start:stop],
            self.next_log_probs[start:stop],
        )


@runtime_checkable
class TruncatedSource(Protocol):
    """Something that gives the likeliest tokens for every scored token of a window."""

    @property
    def name(self) -> str:
        """What a reader calls it, such as the model's name."""

    @property
    def scheme(self) -> str:
        """Its weights' scheme, such as "bf16"."""

    @property
    def max_tokens(self) -> int:
        """Tokens that it can read in front of the last one of a window."""

    def log_probs(self, window: Window) -> TruncatedLogProbs:
        """The `window.num_scored` positions of a window, in order."""


def score_truncated(
    target: TruncatedSource,
    base: LogitSource,
    windows: EvaluationWindows,
    *,
    on_window: OnWindow | None = None,
    until: PrecisionGoal | None = None,
) -> Scores:
    """Score the target and the base, window by window, as `scores.score_windows` does for logits.

    The divergences in it are lower bounds. Raises UsageError (a window longer than one of them
    reads, another vocabulary), ModelError (NaN or infinite values) and what the source raises.
    """
    windows.check_length(min(target.max_tokens, base.max_tokens))
    statistics: list[TokenStatistics] = []
    for index, window in enumerate(windows.windows):
        statistics.append(_score_window(target, base, window))
        if not statistics[-1].is_finite:
            raise ModelError(
                f"{base.name!r} or {target.name!r} gives NaN or infinite values in window "
                f"{index + 1}",
                "Run both in float32 or bfloat16; if that does not help, the weights are damaged.",
            )
        if on_window is not None:
            on_window(index + 1, len(windows.windows))
        if until is not None and _is_reached(until, statistics):
            break
    return Scores(windows.first(len(statistics)), tuple(statistics))


def _is_reached(goal: PrecisionGoal, statistics: list[TokenStatistics]) -> bool:
    sums = np.array([float(window.kld.sum()) for window in statistics])
    return goal.is_reached(sums, np.array([float(len(window.kld)) for window in statistics]))


def _score_window(target: TruncatedSource, base: LogitSource, window: Window) -> TokenStatistics:
    told = target.log_probs(window)
    if int(told.token_ids.max()) >= base.vocab_size:
        raise UsageError(
            f"{target.name!r} has a token {int(told.token_ids.max())}, and its base a vocabulary "
            f"of {base.vocab_size} tokens",
            "Compare a model with the one that it was made from.",
        )
    parts, start = [], 0
    for logits in base.chunks(window):
        stop = start + len(logits)
        next_tokens = window.next_tokens[start:stop]
        parts.append(compare_truncated(logits, told.rows(start, stop), next_tokens))
        start = stop
    return concatenate(parts)


def compare_truncated(
    base: Tensor, target: TruncatedLogProbs, next_tokens: Tensor
) -> TokenStatistics:
    """Statistics of n positions of which the target tells k tokens each.

    base: logits [n, V]. next_tokens: int64 [n]. `kld` is a lower bound of KL(base || target), all
    else is exact. Ties for the first place go to the smaller token id on both sides.
    """
    assert len(base) == len(target.token_ids), f"{base.shape} for {target.token_ids.shape}"
    shifted = base.float().cpu()
    shifted = shifted - shifted.amax(dim=1, keepdim=True)  # [n, V]
    exp = shifted.exp()
    total = exp.sum(dim=1, dtype=torch.float64)  # [n]
    base_top = shifted.argmax(dim=1)
    base_log_prob = _gather(shifted, next_tokens.unsqueeze(1)).squeeze(1) - total.log()
    base_named = _gather(shifted, target.token_ids) - total.log().unsqueeze(1)  # [n, k]
    gaps = base_named.exp() * (base_named - target.log_probs)
    named = torch.where(target.is_reported, gaps, 0.0).sum(dim=1)
    base_rest = exp.scatter_(1, _of_reported(target), 0.0).sum(dim=1, dtype=torch.float64) / total
    reported = torch.where(target.is_reported, target.log_probs.exp(), 0.0).sum(dim=1)
    target_rest = (1.0 - reported).clamp(min=0.0) + _ROUNDING
    rest = torch.special.xlogy(base_rest, base_rest / target_rest)
    return TokenStatistics(
        kld=(named + rest).clamp(min=0.0),
        same_top1=base_top == _top_token(target),
        base_log_prob=base_log_prob,
        target_log_prob=target.next_log_probs,
        base_confidence=1.0 / total,
    )


def _gather(values: Tensor, columns: Tensor) -> Tensor:
    return values.gather(1, columns).double()


def _of_reported(target: TruncatedLogProbs) -> Tensor:
    """Token ids [n, k] with the first of each row in place of those that are not reported."""
    return torch.where(target.is_reported, target.token_ids, target.token_ids[:, :1])


def _top_token(target: TruncatedLogProbs) -> Tensor:
    """The likeliest token of each position, the smallest id of several [n]."""
    log_probs = target.log_probs.masked_fill(~target.is_reported, -torch.inf)
    is_top = target.is_reported & (log_probs == log_probs.amax(dim=1, keepdim=True))
    beyond_all = torch.iinfo(torch.int64).max
    return target.token_ids.masked_fill(~is_top, beyond_all).amin(dim=1)
