"""The quality of one model against its base, on the same windows, paired token by token.

Knows nothing about files, methods or how the weights came to be. The law it keeps: both models
read the same tokens, every statistic is over the same positions, and each interval is over windows.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llmopt.errors import ModelError, UsageError
from llmopt.quality.bootstrap import FloatArray, ratio_interval
from llmopt.quality.divergence import TokenStatistics, compare_logits, concatenate
from llmopt.quality.logits import (
    BaseLogits,
    ScorableModel,
    check_window,
    logit_chunks,
    rows_per_chunk,
)
from llmopt.quality.options import QualityOptions
from llmopt.results.schema import Interval, QualityRecord

OnWindow = Callable[[int, int], None]  # (windows done, windows in all)


def measure_quality(
    target: ScorableModel,
    base: BaseLogits,
    options: QualityOptions,
    on_window: OnWindow | None = None,
) -> QualityRecord:
    """Score the target and the base on the base's windows.

    `options` must be those that the windows were made with. `on_window` hears of each finished
    window. A model compared with itself has a KL divergence of exactly 0 and agrees everywhere.
    Raises UsageError when the models cannot be compared (another vocabulary, a window longer than
    the target reads), ModelError when one of them gives NaN or infinite logits.
    """
    windows = base.windows
    asked = (options.num_windows, options.window)
    assert tuple(windows.token_ids.shape) == asked, "the windows were made with other options"
    check_window(target, windows)
    _check_vocabulary(target, base)
    scored = []
    for index in range(windows.num_windows):
        scored.append(_score_window(target, base, index))
        if on_window is not None:
            on_window(index + 1, windows.num_windows)
    return _summarize(scored, base, options)


def _check_vocabulary(target: ScorableModel, base: BaseLogits) -> None:
    sizes = target.config.vocab_size, base.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the model has a vocabulary of {sizes[0]} tokens and its base one of {sizes[1]}",
            "Compare a model with the one that it was made from.",
        )


def _score_window(target: ScorableModel, base: BaseLogits, index: int) -> TokenStatistics:
    """Statistics of the `window - 1` scored positions of one window."""
    token_ids = base.windows.token_ids[index]
    chunks = zip(
        base.chunks(index),
        logit_chunks(target, token_ids),
        torch.split(token_ids[1:], rows_per_chunk(target.config.vocab_size)),
        strict=True,
    )
    statistics = concatenate([compare_logits(*chunk) for chunk in chunks])
    if not statistics.is_finite:
        _refuse(statistics, base.name, index)
    return statistics


def _refuse(statistics: TokenStatistics, base_name: str, index: int) -> None:
    of_base = not bool(statistics.base_log_prob.isfinite().all())
    model = f"the base {base_name!r}" if of_base else "the model"
    raise ModelError(
        f"{model} gives NaN or infinite logits in window {index + 1}",
        "Run it in float32 or bfloat16; if that does not help, its weights are damaged: "
        + ("fetch it again." if of_base else "make it again."),
    )


def _summarize(
    scored: list[TokenStatistics], base: BaseLogits, options: QualityOptions
) -> QualityRecord:
    """Averages over all tokens, with intervals over windows."""
    windows = base.windows
    kld = _stack([window.kld for window in scored])  # [W, window - 1], as all below
    same_top1 = _stack([window.same_top1 for window in scored])
    base_log_prob = _stack([window.base_log_prob for window in scored])
    target_log_prob = _stack([window.target_log_prob for window in scored])
    log_ratio = base_log_prob - target_log_prob
    log_ratio_low, log_ratio_high = _interval(log_ratio, options)
    kld_median, kld_p99 = np.quantile(kld, [0.5, 0.99])
    return QualityRecord(
        base_name=base.name,
        base_scheme=base.scheme,
        text_name=windows.text_name,
        text_sha256=windows.text_sha256,
        protocol=windows.protocol,
        window=windows.window,
        num_windows=windows.num_windows,
        num_tokens=kld.size,
        kld_mean=float(kld.mean()),
        kld_mean_ci=_interval(kld, options),
        kld_median=float(kld_median),
        kld_p99=float(kld_p99),
        kld_max=float(kld.max()),
        top1_agreement=float(same_top1.mean()),
        top1_agreement_ci=_interval(same_top1, options),
        ppl=_perplexity(-target_log_prob.mean()),
        base_ppl=_perplexity(-base_log_prob.mean()),
        ppl_ratio=_perplexity(log_ratio.mean()),
        ppl_ratio_ci=(_perplexity(log_ratio_low), _perplexity(log_ratio_high)),
        confidence=options.confidence,
    )


def _perplexity(nll: float) -> float:
    """Perplexity, or a ratio of two, from a mean in nats per token."""
    try:
        return math.exp(nll)
    except OverflowError as error:
        raise ModelError(
            f"the model is wrong by {nll:.0f} nats per token, a perplexity beyond all numbers",
            "Its weights are damaged: make it again.",
        ) from error


def _stack(columns: list[Tensor]) -> FloatArray:
    return np.stack([column.double().numpy() for column in columns])


def _interval(values: FloatArray, options: QualityOptions) -> Interval:
    """Interval of the mean over all tokens of values [W, window - 1]."""
    return ratio_interval(
        values.sum(axis=1),
        np.full(len(values), float(values.shape[1])),
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )
