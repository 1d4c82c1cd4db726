"""What the gate compares: the metrics by name, and their value in one run.

Knows nothing about rules or statistics. The law: the run is the unit, since the requests of a run
share the machine's state; latencies are defined in `llmopt.bench.latencies`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from llmopt.bench.latencies import LATENCIES
from llmopt.results.schema import CellResult, RequestRecord, RunRecord

RunValue = Callable[[RunRecord], float | None]

NO_BASELINE = "the baseline does not have it"

_LATENCY_NAMES = ("ttft", "tpot", "itl", "e2e")
_PERCENTS = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a cell. `unit`: of its absolute tolerances; "": it has none.

    kind: "speed": one value per run; "quality": from sums per window of text; "size": exact
    """

    name: str
    kind: Literal["speed", "quality", "size"]
    is_higher_better: bool
    unit: str
    run_value: RunValue | None = None
    latency: str | None = None  # of the requests' samples that it is made of


def run_values(metric: Metric, cell: CellResult) -> list[float] | None:
    """One value per run, by `repeat`; None if a run has none, or not one above 0."""
    assert metric.run_value is not None, "only speed is of runs"
    runs = sorted(cell.runs, key=lambda run: run.repeat)
    values = [value for run in runs if (value := metric.run_value(run)) is not None and value > 0]
    return values if values and len(values) == len(runs) else None


def size_value(metric: Metric, cell: CellResult) -> float | None:
    """The bytes of the file or of the weights; None where they are not known."""
    if cell.model is None:
        return None
    return float(getattr(cell.model, metric.name))


def _percentile(latency: str, percent: float | None) -> RunValue:
    def value(run: RunRecord) -> float | None:
        samples = latency_samples_ms(run, latency)
        if not samples:
            return None
        return float(np.mean(samples) if percent is None else np.percentile(samples, percent))

    return value


def latency_samples_ms(run: RunRecord, latency: str) -> list[float]:
    """The samples of a run's requests without an error, in the order of their records."""
    of = LATENCIES[latency]
    return [1000 * v for request in run.requests if request.error is None for v in of(request)]


def _rate(count: Callable[[RequestRecord], int]) -> RunValue:
    def value(run: RunRecord) -> float | None:
        if run.duration_s <= 0:
            return None
        return sum(count(r) for r in run.requests if r.error is None) / run.duration_s

    return value


def _joules_per_token(run: RunRecord) -> float | None:
    tokens = sum(r.num_output_tokens for r in run.requests if r.error is None)
    return None if run.energy is None or not tokens else run.energy.joules / tokens


def _all() -> dict[str, Metric]:
    found = [
        Metric("output_throughput", "speed", True, "tok/s", _rate(lambda r: r.num_output_tokens)),
        Metric(
            "total_throughput",
            "speed",
            True,
            "tok/s",
            _rate(lambda r: r.num_prompt_tokens + r.num_output_tokens),
        ),
        Metric("request_throughput", "speed", True, "req/s", _rate(lambda _: 1)),
        Metric("peak_memory", "speed", False, "bytes", lambda run: run.peak_memory_bytes),
        Metric("startup", "speed", False, "s", lambda run: run.startup_s),
        Metric("joules_per_token", "speed", False, "J", _joules_per_token),
        Metric("kld_mean", "quality", False, "nats"),
        Metric("ppl_ratio", "quality", False, ""),
        Metric("base_ppl", "quality", False, ""),
        Metric("top1_agreement", "quality", True, ""),
        Metric("file_bytes", "size", False, "bytes"),
        Metric("weight_bytes", "size", False, "bytes"),
    ]
    for name in _LATENCY_NAMES:
        for label, percent in (*_PERCENTS.items(), ("mean", None)):
            value = _percentile(name, percent)
            found.append(Metric(f"{name}_{label}", "speed", False, "ms", value, name))
    return {metric.name: metric for metric in found}


METRICS: Mapping[str, Metric] = MappingProxyType(_all())
