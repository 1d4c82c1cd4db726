"""The numbers of a cell, derived from its raw events.

Knows nothing about models, backends or clocks; imports the result schema only. The law: everything
here can be computed again from a result file. Only requests without an error are samples (how many
failed is a number of its own); latencies are defined in `llmopt.bench.latencies`.

Throughputs divide by the whole run, ramp and drain included, or by its steady window, and say so.
Latencies are pooled over the requests of all runs; rates, MFU and MBU are medians over the runs.
The intervals of runs are of their mean: a median has none of 95 % with fewer than six runs.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean, median
from typing import TypeVar

import numpy as np

from llmopt.bench.goodput import goodput
from llmopt.bench.latencies import LATENCIES, tpot_s
from llmopt.bench.percentiles import summarize_runs
from llmopt.bench.resampling import block_bootstrap
from llmopt.bench.statistics import MIN_RUNS, MIN_TREND, runs_interval, trend
from llmopt.bench.timeline import timeline
from llmopt.bench.work import bytes_per_s, flops_per_s, mbu, mfu, share
from llmopt.hardware.peaks import Peak, find_peak
from llmopt.results.schema import (
    Ceilings,
    CellResult,
    CostModel,
    Drift,
    Interval,
    LoadSpec,
    Percentiles,
    RequestRecord,
    RunRecord,
    SteadySummary,
    Summary,
)

T = TypeVar("T", int, float)

SECONDS_PER_HOUR = 3600.0
_TOKENS_OF_PRICE = 1e6


def summarize_cell(cell: CellResult) -> Summary | None:
    """The summary of a cell from everything else in its file; None if it has no runs."""
    if not cell.runs or cell.model is None:
        return None
    num_blocks = cell.backend.settings.get("num_blocks")
    return summarize(
        cell.runs,
        cell.cost,
        cell.ceilings,
        cell.model.compute_dtype,
        load=cell.load,
        peak=find_peak(cell.environment.device),
        num_blocks=num_blocks if isinstance(num_blocks, int) else None,
        price_per_hour=cell.price_per_hour,
    )


def summarize(
    runs: Sequence[RunRecord],
    cost: CostModel | None,
    ceilings: Ceilings | None,
    compute_dtype: str,
    *,
    load: LoadSpec | None = None,
    peak: Peak | None = None,
    num_blocks: int | None = None,
    price_per_hour: float | None = None,
) -> Summary:
    """Derive all numbers.

    What the keywords are needed for is None without them: `load` for goodput, `peak` (the data
    sheet) for MFU and MBU against it, `num_blocks` of the KV cache for its use, `price_per_hour` of
    the machine for the cost.
    """
    assert runs, "a summary needs a run"
    served = [request for run in runs for request in run.requests if request.error is None]
    num_requests = sum(len(run.requests) for run in runs)
    latency = partial(_latency, runs)
    output = [_rate(run, lambda r: r.num_output_tokens) for run in runs]
    throughput = median(output)
    tpots = _run_tpots_ms(runs)
    lines = [(timeline(run), run.duration_s) for run in runs if run.duration_s > 0]
    flops = [] if cost is None else [flops_per_s(run, cost) for run in runs]
    moved = [] if cost is None else [bytes_per_s(run, cost) for run in runs]
    mfus: list[float | None] = []
    mbus: list[float | None] = []
    if cost is not None and ceilings is not None:
        mfus = [mfu(run, cost, ceilings, compute_dtype) for run in runs]
        mbus = [mbu(run, cost, ceilings) for run in runs]
    return Summary(
        ttft_ms=latency("ttft"),
        tpot_ms=latency("tpot"),
        itl_ms=latency("itl"),
        e2e_ms=latency("e2e"),
        output_throughput=throughput,
        total_throughput=median(_rate(run, _all_tokens) for run in runs),
        request_throughput=median(_rate(run, lambda _: 1) for run in runs),
        mfu=_median(mfus),
        mbu=_median(mbus),
        run_output_throughput=tuple(output),
        run_tpot_ms=tuple(median(values) for values in tpots if values),
        peak_memory_bytes=_max(run.peak_memory_bytes for run in runs),
        ttft_sent_ms=latency("ttft_sent"),
        e2e_sent_ms=latency("e2e_sent"),
        ntpot_ms=latency("ntpot"),
        icl_ms=latency("icl"),
        client_lag_ms=latency("client_lag"),
        input_throughput=median(_rate(run, lambda r: r.num_prompt_tokens) for run in runs),
        output_throughput_ci=runs_interval(output),
        tpot_p50_ci=_median_interval(runs, tpots),
        steady=steady(runs),
        goodput=None if load is None else goodput(runs, load.slo),
        error_share=(num_requests - len(served)) / num_requests if num_requests else None,
        peak_concurrency=_max(line.peak for line, _ in lines),
        mean_concurrency=_median(line.mean(duration_s) for line, duration_s in lines),
        tokens_per_event=tokens_per_event(served),
        cache_hit_rate=cache_hit_rate(runs),
        acceptance_rate=_counter_share(runs, "num_accepted_tokens", "num_draft_tokens"),
        num_preemptions=sum(r.num_preemptions for run in runs for r in run.requests),
        peak_kv_use=_peak_kv_use(runs, num_blocks),
        startup_s=_median(run.startup_s for run in runs),
        mfu_datasheet=_median(share(r, peak.flops(compute_dtype)) for r in flops) if peak else None,
        mbu_datasheet=_median(share(r, peak.memory_bytes_per_s) for r in moved) if peak else None,
        joules_per_token=_joules_per_token(runs),
        cost_per_million_tokens=cost_per_million_tokens(throughput, price_per_hour),
        drift=drift(runs),
    )


def cost_per_million_tokens(throughput: float, price_per_hour: float | None) -> float | None:
    """What a million output tokens cost, in the unit of the price, on a machine that is never idle.

    (price per second) / (tokens per second) * 10^6, as in inference-perf.
    """
    if price_per_hour is None or throughput <= 0:
        return None
    return price_per_hour / SECONDS_PER_HOUR / throughput * _TOKENS_OF_PRICE


def steady(runs: Sequence[RunRecord]) -> SteadySummary | None:
    """Rates while the usual number of requests was in flight, medians over the runs.

    An output token counts when its event lies in the window, a prompt when its first token does.
    The first event of a window is left out, as its tokens were made before it.
    """
    found: list[tuple[float, float, float]] = []
    for run in runs:
        window = timeline(run).steady_window()
        if window is None or run.duration_s <= 0:
            continue
        start, end = window
        output = prompt = 0
        for request in run.requests:
            if request.error is not None:
                continue
            for at, count in zip(request.token_times_s, request.token_counts, strict=True):
                output += count * (start < at <= end)
            if request.first_token_s is not None and start < request.first_token_s <= end:
                prompt += request.num_prompt_tokens
        length = end - start
        found.append((output / length, (output + prompt) / length, length / run.duration_s))
    if not found:
        return None
    outputs, totals, shares = zip(*found, strict=True)
    return SteadySummary(median(outputs), median(totals), fmean(shares))


def drift(runs: Sequence[RunRecord]) -> Drift | None:
    """The trend of the runs' median TPOT in the order of their time; None for fewer than five."""
    ordered = sorted(runs, key=lambda run: run.started_at)
    values = [median(tpots) for tpots in _run_tpots_ms(ordered) if tpots]
    if len(values) < MIN_TREND or median(values) <= 0:
        return None
    slope, p_value = trend(values)
    return Drift(slope / median(values), p_value)


def tokens_per_event(requests: Iterable[RequestRecord]) -> float | None:
    """Output tokens / stream events that held any; None without events."""
    counts = [count for request in requests for count in request.token_counts]
    return sum(counts) / len(counts) if counts else None


def cache_hit_rate(runs: Sequence[RunRecord]) -> float | None:
    """Prompt tokens that were found in a cache / prompt tokens, from requests or counters.

    Some servers (vLLM, SGLang) give a request's count only if it is above 0: where one request has
    a count, those without have found nothing. None where neither the requests nor the engine say.
    """
    requests = [r for run in runs for r in run.requests if r.error is None]
    cached = [r.num_cached_tokens for r in requests if r.num_cached_tokens is not None]
    prompts = sum(request.num_prompt_tokens for request in requests)
    if cached and prompts:
        return sum(cached) / prompts
    return _counter_share(runs, "num_prefix_hit_tokens", "num_prompt_tokens")


def _latency(runs: Sequence[RunRecord], name: str) -> Percentiles | None:
    """The samples of each run in the order of the time at which they were complete."""
    kept = []
    for run in runs:
        timed = [
            sample
            for request in run.requests
            if request.error is None
            for sample in _timed(request, name)
        ]
        kept.append([1000 * value for _, value in sorted(timed, key=lambda pair: pair[0])])
    return summarize_runs(kept)


def _timed(request: RequestRecord, name: str) -> list[tuple[float, float]]:
    """The samples of a request, each with the time of the event that completed it."""
    values = list(LATENCIES[name](request))
    if name == "itl":
        pairs = zip(request.token_times_s[1:], request.token_counts[1:], strict=True)
        times = [at for at, count in pairs for _ in range(count)]
    elif name == "icl":
        times = list(request.token_times_s[1:])
    else:
        times = [request.sent_s if request.last_token_s is None else request.last_token_s]
    return list(zip(times, values, strict=bool(values)))


def _run_tpots_ms(runs: Sequence[RunRecord]) -> list[list[float]]:
    """The TPOTs of each run's requests, in the order of their records."""
    values = [[tpot_s(r) for r in run.requests if r.error is None] for run in runs]
    return [[1000 * value for value in of_run if value is not None] for of_run in values]


def _median_interval(runs: Sequence[RunRecord], tpots: list[list[float]]) -> Interval | None:
    """Of the mean of the runs' medians if there are enough; of the median of a single run, from
    blocks of requests.
    """
    medians = [median(values) for values in tpots if values]
    if len(medians) >= MIN_RUNS:
        return runs_interval(medians)
    if len(medians) != 1:
        return None
    (values,) = (values for values in tpots if values)
    return block_bootstrap(values, lambda drawn: np.median(drawn, axis=1), seed=runs[0].seed)


def _rate(run: RunRecord, of: Callable[[RequestRecord], int]) -> float:
    """Something of the requests without an error, per second of the run."""
    if run.duration_s <= 0:
        return 0.0
    return sum(of(request) for request in run.requests if request.error is None) / run.duration_s


def _all_tokens(request: RequestRecord) -> int:
    return request.num_prompt_tokens + request.num_output_tokens


def _counter_share(runs: Sequence[RunRecord], part: str, whole: str) -> float | None:
    """The ratio of two counters over all runs; None where a run lacks one, or there is nothing."""
    stats = [run.step_stats for run in runs]
    if any(part not in of_run or whole not in of_run for of_run in stats):
        return None
    total = sum(of_run[whole] for of_run in stats)
    return sum(of_run[part] for of_run in stats) / total if total else None


def _peak_kv_use(runs: Sequence[RunRecord], num_blocks: int | None) -> float | None:
    used = _max(run.step_stats.get("peak_used_blocks") for run in runs)
    return None if used is None or not num_blocks else used / num_blocks


def _joules_per_token(runs: Sequence[RunRecord]) -> float | None:
    energies = [run.energy.joules for run in runs if run.energy is not None]
    tokens = sum(r.num_output_tokens for run in runs for r in run.requests if r.error is None)
    return sum(energies) / tokens if len(energies) == len(runs) and tokens else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _max(values: Iterable[T | None]) -> T | None:
    return max((value for value in values if value is not None), default=None)
