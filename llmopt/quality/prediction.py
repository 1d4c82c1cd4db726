"""How well one model alone predicts a text, where there is no base to compare it with.

Knows nothing about files or KL divergence. The law it keeps: the numbers are those that a
comparison on the same windows gives for the same model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmopt.errors import ModelError
from llmopt.quality.options import QualityOptions
from llmopt.quality.perplexity import Perplexity, perplexity
from llmopt.quality.scores import OnWindow
from llmopt.quality.source import LogitSource, rows_per_chunk
from llmopt.quality.windows import EvaluationWindows, Window


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """Perplexity of one model on one text, with what it was measured on."""

    model_name: str
    model_scheme: str
    text_name: str
    text_sha256: str
    protocol_name: str
    protocol: str  # in words: how the windows were cut and scored
    window: int  # tokens of the longest window
    num_windows: int
    num_tokens: int  # scored positions
    perplexity: Perplexity
    confidence: float


def measure_prediction(
    source: LogitSource,
    windows: EvaluationWindows,
    options: QualityOptions,
    on_window: OnWindow | None = None,
) -> PredictionRecord:
    """Score one source of logits on all the windows.

    `on_window` hears of each finished window. Raises UsageError for windows longer than the source
    reads, ModelError for NaN or infinite logits and for a perplexity beyond all numbers.
    """
    windows.check_length(source.max_tokens)
    nll_sums = np.zeros(len(windows.windows))
    for index, window in enumerate(windows.windows):
        nll_sums[index] = _nll(source, window)
        if not np.isfinite(nll_sums[index]):
            raise ModelError(
                f"the model {source.name!r} gives NaN or infinite logits in window {index + 1}",
                "Run it in float32 or bfloat16; if that does not help, its weights are damaged: "
                "make it again.",
            )
        if on_window is not None:
            on_window(index + 1, len(windows.windows))
    return PredictionRecord(
        model_name=source.name,
        model_scheme=source.scheme,
        text_name=windows.text_name,
        text_sha256=windows.text_sha256,
        protocol_name=windows.protocol,
        protocol=windows.description,
        window=windows.max_tokens,
        num_windows=len(windows.windows),
        num_tokens=windows.num_tokens,
        perplexity=perplexity(nll_sums, windows, options),
        confidence=options.confidence,
    )


def _nll(source: LogitSource, window: Window) -> float:
    """Sum of the negative log-likelihoods of a window's scored tokens, in nats."""
    chunks = zip(
        source.chunks(window),
        torch.split(window.next_tokens, rows_per_chunk(source.vocab_size)),
        strict=True,
    )
    return sum(_chunk_nll(logits, next_tokens) for logits, next_tokens in chunks)


def _chunk_nll(logits: Tensor, next_tokens: Tensor) -> float:
    """logits: [n, V]; next_tokens: int64 [n]. Exponentials in float32, the sum in float64."""
    nll = torch.nn.functional.cross_entropy(
        logits.float(), next_tokens.to(logits.device), reduction="none"
    )
    return float(nll.double().sum())
