"""Perplexity of log-probabilities, per token, per byte and per word.

Knows nothing about models or KL divergence. The law it keeps: every average is over all scored
tokens of all windows, so that a window weighs as much as it has tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from llmopt.errors import ModelError
from llmopt.quality.bootstrap import FloatArray, ratio_interval
from llmopt.quality.options import QualityOptions
from llmopt.quality.windows import EvaluationWindows
from llmopt.results.schema import Interval


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well one model predicts the text; `None` where the text's bytes or words are unknown."""

    ppl: float
    ppl_ci: Interval
    bits_per_byte: float | None
    word_ppl: float | None


def perplexity(
    nll_sums: FloatArray, windows: EvaluationWindows, options: QualityOptions
) -> Perplexity:
    """The perplexity of sums of negative log-likelihood, in nats, one per window [W].

    Raises ModelError for a perplexity beyond all numbers.
    """
    num_scored = np.array([float(window.num_scored) for window in windows.windows])
    low, high = ratio_interval(
        nll_sums,
        num_scored,
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )
    total = float(nll_sums.sum())
    num_bytes = sum(window.num_bytes for window in windows.windows)
    return Perplexity(
        ppl=from_nats(total / windows.num_tokens),
        ppl_ci=(from_nats(low), from_nats(high)),
        bits_per_byte=total / math.log(2) / num_bytes if num_bytes else None,
        word_ppl=from_nats(total / windows.num_words) if windows.num_words else None,
    )


def from_nats(nll: float) -> float:
    """Perplexity, or a ratio of two, from a mean in nats. ModelError if beyond all numbers."""
    try:
        return math.exp(nll)
    except OverflowError as error:
        raise ModelError(
            f"the model is wrong by {nll:.0f} nats per token, a perplexity beyond all numbers",
            "Its weights are damaged: make it again.",
        ) from error
