"""The scatter that the requests within a run imply, where there are too few runs to see their own.

Knows nothing about rules. The law: this is a lower bound of a run's scatter, since what a run's
requests share is not in it; the noise between sessions is added by the caller.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmopt.bench.resampling import block_bootstrap
from llmopt.report.gate.metrics import METRICS, Metric, latency_samples_ms
from llmopt.results.schema import RunRecord

_NORMAL_95 = 1.96  # `block_bootstrap` gives intervals of 95 %
_PERCENTS = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


def log_error(metric: Metric, runs: Sequence[RunRecord]) -> float | None:
    """The standard error of the mean over runs of the logarithm of a metric, by block bootstrap.

    A throughput is judged by the mean of its requests' end-to-end times, as in a closed loop it is
    the concurrency / that. None: too few requests, or a metric that requests have no part in.
    """
    if metric.name.endswith("_throughput"):
        metric = METRICS["e2e_mean"]
    if metric.latency is None:
        return None
    percent = _PERCENTS.get(metric.name.rpartition("_")[2])

    def statistic(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        found = drawn.mean(axis=1) if percent is None else np.percentile(drawn, percent, axis=1)
        return np.asarray(found, dtype=np.float64)

    variance = 0.0
    for run in runs:
        interval = block_bootstrap(
            latency_samples_ms(run, metric.latency), statistic, seed=run.seed
        )
        if interval is None or interval[0] <= 0:
            return None
        variance += (math.log(interval[1] / interval[0]) / (2 * _NORMAL_95)) ** 2
    return math.sqrt(variance) / len(runs)
