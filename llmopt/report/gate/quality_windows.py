"""The change of a quality metric between two records of one text, paired window by window.

Knows nothing about rules. The laws: the window is the unit, as its tokens depend on each other;
two records are compared only if base, text and windows are the same; a change of the KL divergence
that is smaller than what rounding alone costs (the baseline's noise floor) is none. Losses are
against the base of the same revision, so the base's own perplexity is compared, too.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from llmopt.quality.bootstrap import ratio_interval
from llmopt.quality.student import upper_quantile, upper_tail
from llmopt.report.gate.equivalence import (
    ALPHA,
    Change,
    exact_change,
    normal_change,
    unknown_change,
)
from llmopt.report.gate.matching import CellPair
from llmopt.report.gate.metrics import NO_BASELINE, Metric
from llmopt.results.schema import Interval, QualityRecord

FloatArray = NDArray[np.float64]

_METHOD = "windows of text, paired"


@dataclass(frozen=True, slots=True)
class QualityChange:
    """The change as a share of the baseline. `noise`: the share that rounding alone may cost."""

    before: float
    after: float
    change: Change
    noise: float = 0.0
    problem: str | None = None


def quality_change(
    metric: Metric, pair: CellPair, allowed: float | None = None
) -> QualityChange | None:
    """The change of "kld_mean", "ppl_ratio", "base_ppl" or "top1_agreement"; None if neither has a
    record.

    allowed: an absolute tolerance, which is what a KL divergence that was 0 may become
    """
    old, new = pair.old.quality, pair.new.quality
    if old is None and new is None:
        return None
    problem = _problem(old, new)
    if problem is not None or old is None or new is None:
        change = unknown_change(math.nan, "none")
        return QualityChange(math.nan, math.nan, change, problem=problem)
    before, after = (float(getattr(record, metric.name)) for record in (old, new))
    if metric.name == "kld_mean" and before == 0:
        return QualityChange(before, after, _from_nothing(after, old, new, allowed or 0.0))
    if metric.name == "base_ppl":
        return QualityChange(before, after, exact_change(after / before - 1))
    is_paired = bool(old.window_sums) and len(old.window_sums) == len(new.window_sums)
    change = _paired(metric.name, old, new) if is_paired else _apart(metric, old, new)
    return QualityChange(before, after, change, _noise(metric.name, old, new))


def _problem(old: QualityRecord | None, new: QualityRecord | None) -> str | None:
    if old is None or new is None:
        return NO_BASELINE if old is None else "the new result has no quality"
    for name, words in (
        ("text_sha256", "texts"),
        ("base_name", "bases"),
        ("base_scheme", "bases"),
        ("protocol_name", "protocols"),
        ("num_tokens", "numbers of tokens"),
        ("num_windows", "windows"),
        ("source", "sources of log-probabilities"),
    ):
        if getattr(old, name) != getattr(new, name):
            return f"the two are of different {words}"
    return None


def _noise(name: str, old: QualityRecord, new: QualityRecord) -> float:
    if name != "kld_mean":
        return 0.0
    return _noise_floor(old, new) / old.kld_mean


def _noise_floor(old: QualityRecord, new: QualityRecord) -> float:
    """Nats per token that rounding alone costs; 0 where it was not measured.

    The baseline's: what the new side loses by rounding may be what went wrong there.
    """
    noise = old.noise or new.noise
    return noise.kld_mean if noise is not None else 0.0


def _from_nothing(after: float, old: QualityRecord, new: QualityRecord, allowed: float) -> Change:
    """The change of a KL divergence that was 0: none within the noise or what is allowed, else
    beyond all shares.
    """
    is_none = after <= max(allowed, _noise_floor(old, new))
    return exact_change(0.0 if is_none else math.inf, "the baseline is 0")


def _paired(name: str, old: QualityRecord, new: QualityRecord) -> Change:
    before, after = _sums(name, old), _sums(name, new)
    if np.array_equal(before, after):
        return exact_change(0.0, "identical in every window")
    if name == "ppl_ratio":
        tokens = np.array([float(window.num_tokens) for window in old.window_sums])
        low, high = _interval(after - before, tokens)
        value = math.expm1(float((after - before).sum() / tokens.sum()))
        return _change(value, (math.expm1(low), math.expm1(high)), after - before)
    low, high = _interval(after, before)
    value = float(after.sum() / before.sum())
    if name == "top1_agreement":
        return _change(1 - value, (1 - high, 1 - low), before - after)
    return _change(value - 1, (low - 1, high - 1), after - before)


def _sums(name: str, record: QualityRecord) -> FloatArray:
    """What each window adds to the metric's sum over tokens, [W]."""
    field = {"kld_mean": "kld", "ppl_ratio": "log_ratio", "top1_agreement": "num_same_top1"}[name]
    return np.array([float(getattr(window, field)) for window in record.window_sums])


def _interval(numerators: FloatArray, denominators: FloatArray) -> Interval:
    """Both ends one-sided at 95 %; unbounded for a single window."""
    if len(numerators) < 2 or bool((denominators <= 0).any()):
        return -math.inf, math.inf
    return ratio_interval(numerators, denominators, confidence=1 - 2 * ALPHA)


def _change(value: float, interval: Interval, worse: FloatArray) -> Change:
    """`worse`: by how much each window became worse, for Student's t of windows."""
    count = len(worse)
    if count < 2:
        return unknown_change(value, "a single window", 1)
    error = float(np.std(worse, ddof=1)) / math.sqrt(count)
    mean = float(worse.mean())
    tail = upper_tail(mean / error, count - 1) if error > 0 else (0.0 if mean > 0 else 1.0)
    half = (interval[1] - interval[0]) / 2
    spread = half * math.sqrt(count) / upper_quantile(ALPHA, count - 1)
    return Change(value, interval, tail, _METHOD, count, spread)


def _apart(metric: Metric, old: QualityRecord, new: QualityRecord) -> Change:
    """From the records' own intervals, as if they were of different texts: surely too wide."""
    before, after = (float(getattr(record, metric.name)) for record in (old, new))
    if before == after and old.kld_mean == new.kld_mean:
        return exact_change(0.0, "identical")
    squares = []
    for record in (old, new):
        low, high = getattr(record, f"{metric.name}_ci")
        normal = NormalDist().inv_cdf(0.5 + record.confidence / 2)
        squares.append(((high - low) / 2 / normal / before) ** 2)
    value = 1 - after / before if metric.is_higher_better else after / before - 1
    return normal_change(value, math.sqrt(sum(squares)), "intervals of unpaired windows")
