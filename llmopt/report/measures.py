"""The measures of a row by column name: value, interval, unit, and which way is better.

Knows nothing about text. The law: a value that scatters comes with its 95 % interval, or it has
none because the samples are too few; one that does not scatter says that it is exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llmopt.bench.statistics import runs_interval
from llmopt.report.rows import Row
from llmopt.results.schema import Interval, Percentiles, Summary

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value in the unit of its column. `interval` None: too few samples to tell, or exact."""

    value: float
    interval: Interval | None = None
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """What a column measures; `better` None: neither way is better by itself."""

    name: str
    unit: str  # "" for a ratio or a share
    better: Direction | None
    of: Callable[[Row], Estimate | None]


def _exact(value: float | None, unit: float = 1.0) -> Estimate | None:
    return None if value is None else Estimate(value / unit, is_exact=True)


def _kld(row: Row) -> Estimate | None:
    found = row.quality
    return None if found is None else Estimate(found.kld_mean, found.kld_mean_ci)


def _top1(row: Row) -> Estimate | None:
    found = row.quality
    return None if found is None else Estimate(found.top1_agreement, found.top1_agreement_ci)


def _ppl_ratio(row: Row) -> Estimate | None:
    found = row.quality
    return None if found is None else Estimate(found.ppl_ratio, found.ppl_ratio_ci)


def _noise(row: Row) -> Estimate | None:
    found = row.quality.verdict if row.quality else None
    return None if found is None else Estimate(found.times_noise, found.times_noise_ci)


def _size(row: Row) -> Estimate | None:
    return _exact(row.model.file_bytes if row.model else None, 1e6)


def _bits(row: Row) -> Estimate | None:
    return _exact(row.model.bits_per_weight if row.model else None)


def _linear_bits(row: Row) -> Estimate | None:
    return _exact(row.model.linear_bits_per_weight if row.model else None)


def _throughput(row: Row) -> Estimate | None:
    if row.speed is None:
        return None
    summary = row.speed.summary
    interval = summary.output_throughput_ci or runs_interval(summary.run_output_throughput)
    return Estimate(row.speed.output_throughput, interval)


def _tpot(row: Row) -> Estimate | None:
    found = _percentile(row, "tpot_ms", "p50")
    if found is None or found.interval is not None or row.speed is None:
        return found
    return Estimate(found.value, runs_interval(row.speed.summary.run_tpot_ms))


def _percentile(row: Row, field: str, percent: str) -> Estimate | None:
    found: Percentiles | None = getattr(row.speed.summary, field) if row.speed else None
    if found is None:
        return None
    return Estimate(getattr(found, percent), getattr(found, f"{percent}_ci"))


def _latency(name: str, field: str, percent: str) -> Measure:
    return Measure(name, "ms", "lower", lambda row: _percentile(row, field, percent))


def _of_summary(value: Callable[[Summary], float | None]) -> Callable[[Row], Estimate | None]:
    """A number whose scatter is not known."""

    def estimate(row: Row) -> Estimate | None:
        found = value(row.speed.summary) if row.speed else None
        return None if found is None else Estimate(found)

    return estimate


def _speedup(row: Row) -> Estimate | None:
    if row.speed is None or row.speed.speedup is None:
        return None
    return Estimate(row.speed.speedup, row.speed.speedup_ci)


def _tpot_speedup(row: Row) -> Estimate | None:
    if row.speed is None or row.speed.tpot_speedup is None:
        return None
    return Estimate(row.speed.tpot_speedup, row.speed.tpot_speedup_ci)


def _ttft_speedup(row: Row) -> Estimate | None:
    if row.speed is None or row.speed.ttft_speedup is None:
        return None
    return Estimate(row.speed.ttft_speedup, row.speed.ttft_speedup_ci)


def _quantize_s(row: Row) -> Estimate | None:
    found = row.quantization.seconds if row.quantization else None
    return None if found is None else Estimate(found)


def _concurrency(row: Row) -> Estimate | None:
    return _exact(row.load.concurrency if row.load else None)


def _memory(summary: Summary) -> float | None:
    peak = summary.peak_memory_bytes
    return None if peak is None else peak / 1e6


def _goodput(summary: Summary) -> float | None:
    return summary.goodput.share if summary.goodput else None


_MEASURES = (
    Measure("conc", "", None, _concurrency),
    Measure("kld", "nats", "lower", _kld),
    Measure("top1", "", "higher", _top1),
    Measure("ppl_ratio", "", "lower", _ppl_ratio),
    Measure("noise", "", None, _noise),
    Measure("size", "mb", "lower", _size),
    Measure("bits", "", "lower", _bits),
    Measure("linear_bits", "", "lower", _linear_bits),
    _latency("ttft", "ttft_ms", "p50"),
    _latency("ttft_p95", "ttft_ms", "p95"),
    Measure("tpot", "ms", "lower", _tpot),
    _latency("tpot_p95", "tpot_ms", "p95"),
    _latency("itl_p95", "itl_ms", "p95"),
    _latency("e2e", "e2e_ms", "p50"),
    _latency("e2e_p95", "e2e_ms", "p95"),
    Measure("throughput", "tokens_per_s", "higher", _throughput),
    Measure("speedup", "", "higher", _speedup),
    Measure("tpot_speedup", "", "higher", _tpot_speedup),
    Measure("ttft_speedup", "", "higher", _ttft_speedup),
    Measure("goodput", "", "higher", _of_summary(_goodput)),
    Measure("mfu", "", None, _of_summary(lambda summary: summary.mfu)),
    Measure("mbu", "", None, _of_summary(lambda summary: summary.mbu)),
    Measure("memory", "mb", "lower", _of_summary(_memory)),
    Measure("startup", "s", "lower", _of_summary(lambda summary: summary.startup_s)),
    Measure("energy", "j", "lower", _of_summary(lambda summary: summary.joules_per_token)),
    Measure("cost", "", "lower", _of_summary(lambda summary: summary.cost_per_million_tokens)),
    Measure("quantize_s", "s", "lower", _quantize_s),
)
MEASURES: Mapping[str, Measure] = MappingProxyType({each.name: each for each in _MEASURES})
OF_QUALITY = frozenset({"kld", "top1", "ppl_ratio", "noise"})
