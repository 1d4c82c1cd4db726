"""From statistics per token to the record of a comparison: averages, quantiles and intervals.

Knows nothing about models or files. The law it keeps: averages are over all scored tokens, and
each interval is over windows.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from llmopt.quality.bootstrap import FloatArray, ratio_interval
from llmopt.quality.divergence import TokenStatistics, concatenate
from llmopt.quality.noise import NoiseScores, noise_floor, verdict
from llmopt.quality.options import QualityOptions
from llmopt.quality.perplexity import Perplexity, from_nats, perplexity
from llmopt.quality.scores import Scores
from llmopt.quality.windows import EvaluationWindows
from llmopt.results.schema import DeltaP, Interval, QualityBucket, QualityRecord, WindowSums

CONFIDENCE_EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)  # of the base's top-1 probability
FIRST_POSITIONS = 32  # context tokens of the first bucket by position; the next ones double


def summarize(
    scores: Scores,
    options: QualityOptions,
    *,
    base_name: str,
    base_scheme: str,
    noise: NoiseScores | None = None,
) -> QualityRecord:
    """The record of what was scored; with `noise`, also the noise floor and the verdict.

    `noise` must be of the same windows, or of more that begin with them. Raises ModelError for a
    perplexity beyond all numbers.
    """
    windows = scores.windows
    tokens = concatenate(list(scores.statistics))
    kld = tokens.kld.numpy()
    median, p90, p99, p999 = (float(q) for q in np.quantile(kld, [0.5, 0.9, 0.99, 0.999]))
    base = _perplexity(scores, "base_log_prob", options)
    target = _perplexity(scores, "target_log_prob", options)
    log_ratio_low, log_ratio_high = _interval(scores.log_ratio_sums, scores, options)
    ppl_ratio_ci = (from_nats(log_ratio_low), from_nats(log_ratio_high))
    own_noise = None if noise is None else noise.first(len(windows.windows))
    return QualityRecord(
        base_name=base_name,
        base_scheme=base_scheme,
        text_name=windows.text_name,
        text_sha256=windows.text_sha256,
        protocol=windows.description,
        window=windows.max_tokens,
        num_windows=len(windows.windows),
        num_tokens=len(kld),
        kld_mean=float(scores.kld_sums.sum() / len(kld)),
        kld_mean_ci=_interval(scores.kld_sums, scores, options),
        kld_median=median,
        kld_p99=p99,
        kld_max=float(kld.max()),
        top1_agreement=float(tokens.same_top1.double().mean()),
        top1_agreement_ci=_interval(_sums(scores, "same_top1"), scores, options),
        ppl=target.ppl,
        base_ppl=base.ppl,
        ppl_ratio=from_nats(float(scores.log_ratio_sums.sum() / len(kld))),
        ppl_ratio_ci=ppl_ratio_ci,
        confidence=options.confidence,
        protocol_name=windows.protocol,
        kld_p90=p90,
        kld_p999=p999,
        ppl_ci=target.ppl_ci,
        base_ppl_ci=base.ppl_ci,
        bits_per_byte=target.bits_per_byte,
        base_bits_per_byte=base.bits_per_byte,
        word_ppl=target.word_ppl,
        base_word_ppl=base.word_ppl,
        delta_p=_delta_p(scores, options),
        by_confidence=_by_confidence(tokens),
        by_position=_by_position(tokens, windows),
        noise=None if own_noise is None else noise_floor(own_noise, options),
        verdict=None if own_noise is None else verdict(scores, ppl_ratio_ci, own_noise, options),
        window_sums=_window_sums(scores),
    )


def _window_sums(scores: Scores) -> tuple[WindowSums, ...]:
    columns = (
        scores.num_scored,
        scores.kld_sums,
        scores.log_ratio_sums,
        _sums(scores, "same_top1"),
    )
    return tuple(
        WindowSums(int(count), float(kld), float(log_ratio), int(same))
        for count, kld, log_ratio, same in zip(*columns, strict=True)
    )


def _perplexity(scores: Scores, column: str, options: QualityOptions) -> Perplexity:
    return perplexity(-_sums(scores, column), scores.windows, options)


def _delta_p(scores: Scores, options: QualityOptions) -> DeltaP:
    changes = [
        (window.target_log_prob.exp() - window.base_log_prob.exp()).numpy()
        for window in scores.statistics
    ]
    change = np.concatenate(changes)
    sums = np.array([float(window.sum()) for window in changes])
    p01, p05, p25, p50, p75, p95, p99 = (
        float(q) for q in np.quantile(change, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    )
    return DeltaP(
        mean=float(change.mean()),
        mean_ci=_interval(sums, scores, options),
        rms=float(np.sqrt((change**2).mean())),
        p01=p01,
        p05=p05,
        p25=p25,
        p50=p50,
        p75=p75,
        p95=p95,
        p99=p99,
    )


def _by_confidence(tokens: TokenStatistics) -> tuple[QualityBucket, ...]:
    """By the base's top-1 probability: a mean over all tokens is mostly of those it is unsure of.

    A bucket holds its lower edge, the last one also 1.
    """
    edges = CONFIDENCE_EDGES
    labels = [f"< {edges[1]:g}", *(f"{a:g}–{b:g}" for a, b in pairwise(edges[1:-1]))]
    labels.append(f"≥ {edges[-2]:g}")
    bucket = np.searchsorted(edges[1:-1], tokens.base_confidence.numpy(), side="right")
    return _buckets(tokens, bucket, labels)


def _by_position(tokens: TokenStatistics, windows: EvaluationWindows) -> tuple[QualityBucket, ...]:
    """By the number of tokens before the scored one: 1-31, 32-63, 64-127 and so on, doubling."""
    num_before = torch.cat(
        [
            torch.arange(len(window.token_ids) - window.num_scored, len(window.token_ids))
            for window in windows.windows
        ]
    ).numpy()
    edges = [1, FIRST_POSITIONS]
    while edges[-1] < windows.max_tokens:
        edges.append(2 * edges[-1])
    labels = [f"{a}–{b - 1}" for a, b in pairwise(edges)]
    return _buckets(tokens, np.searchsorted(edges[1:], num_before, side="right"), labels)


def _buckets(
    tokens: TokenStatistics, bucket: npt.NDArray[np.intp], labels: list[str]
) -> tuple[QualityBucket, ...]:
    """The buckets that have tokens. bucket: number of each token's label, [n]"""
    kld, same_top1 = tokens.kld.numpy(), tokens.same_top1.numpy()
    found = []
    for number, label in enumerate(labels):
        members = bucket == number
        if count := int(members.sum()):
            found.append(
                QualityBucket(
                    label=label,
                    num_tokens=count,
                    kld_mean=float(kld[members].mean()),
                    top1_agreement=float(same_top1[members].mean()),
                )
            )
    return tuple(found)


def _sums(scores: Scores, column: str) -> FloatArray:
    """Sum of one of the statistics over each window's tokens, float64 [W]."""
    return np.array([float(getattr(window, column).double().sum()) for window in scores.statistics])


def _interval(sums: FloatArray, scores: Scores, options: QualityOptions) -> Interval:
    """Interval of the mean over all tokens of something summed up by window [W]."""
    return ratio_interval(
        sums,
        scores.num_scored,
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )
