"""The derived numbers of a cell.

Part of the schema (`llmopt.results.schema`). The law: every field can be computed again from the
cell's raw events, cost model, ceilings, environment and price. Fields with a default came later
than the first files. The definitions, by id, are in `llmopt.bench.definitions`.
"""

from dataclasses import dataclass

Interval = tuple[float, float]  # lower and upper end of a confidence interval


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Order statistics of `n` samples, by linear interpolation."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    n: int
    p999: float | None = None  # only where there are samples enough for it
    n_eff: float | None = None  # independent samples that would be worth as much
    p50_ci: Interval | None = None  # 95 %; None: too few samples
    p95_ci: Interval | None = None
    p99_ci: Interval | None = None


@dataclass(frozen=True, slots=True)
class SteadySummary:
    """Rates between ramp and drain: while no fewer requests were in flight than usual."""

    output_throughput: float
    total_throughput: float
    share: float  # of the runs' time


@dataclass(frozen=True, slots=True)
class Goodput:
    """What was served within every bound of the load's SLO, request by request."""

    requests_per_s: float
    tokens_per_s: float  # output tokens of those requests
    share: float  # of all requests, failed ones among them
    met: bool  # every term of the SLO holds, percentiles where they are asked for


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether the runs, in the order of their time, become slower or faster."""

    per_run: float  # change of the TPOT from one run to the next, as a share of its median
    p_value: float  # of a trend this strong among runs without one


@dataclass(frozen=True, slots=True)
class Summary:
    """The derived numbers of a cell, over all its runs; `None`: no sample, or no ceiling known."""

    ttft_ms: Percentiles | None
    tpot_ms: Percentiles | None
    itl_ms: Percentiles | None
    e2e_ms: Percentiles | None
    output_throughput: float  # output tokens per second
    total_throughput: float  # prompt and output tokens per second
    request_throughput: float  # requests per second
    mfu: float | None  # share of the measured GEMM ceiling, 0 to 1
    mbu: float | None  # share of the measured read bandwidth, 0 to 1
    run_output_throughput: tuple[float, ...]  # one per run
    run_tpot_ms: tuple[float, ...]  # median TPOT of each run; runs without a TPOT are left out
    peak_memory_bytes: int | None = None
    ttft_sent_ms: Percentiles | None = None  # from sending: without the client's queue
    e2e_sent_ms: Percentiles | None = None
    ntpot_ms: Percentiles | None = None  # end-to-end time / output tokens
    icl_ms: Percentiles | None = None  # gaps between stream events, whatever they hold
    client_lag_ms: Percentiles | None = None  # sent - scheduled
    input_throughput: float | None = None  # prompt tokens per second
    output_throughput_ci: Interval | None = None  # 95 %, of the mean over runs (Student's t)
    tpot_p50_ci: Interval | None = None  # ms; of the mean of the runs' medians; of a single run's
    steady: SteadySummary | None = None
    goodput: Goodput | None = None  # None: no SLO
    error_share: float | None = None  # of all requests
    peak_concurrency: int | None = None  # requests in flight at once
    mean_concurrency: float | None = None
    tokens_per_event: float | None = None
    cache_hit_rate: float | None = None  # prompt tokens found in a cache / prompt tokens
    acceptance_rate: float | None = None  # draft tokens that were kept / draft tokens
    num_preemptions: int | None = None
    peak_kv_use: float | None = None  # share of the cache's blocks
    startup_s: float | None = None  # until the backend was ready; median of the runs
    mfu_datasheet: float | None = None  # against the data sheet's peak; None: unknown device
    mbu_datasheet: float | None = None
    joules_per_token: float | None = None  # per output token
    cost_per_million_tokens: float | None = None  # output tokens; in the unit of the price
    drift: Drift | None = None
