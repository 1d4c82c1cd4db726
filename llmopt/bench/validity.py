"""The conditions under which the numbers of a cell mean what they say.

Knows nothing about how the load was made; reads records only, so that any result file can be judged
again. The law: a cell is valid when every check passed; a check says what it saw, passed or not.
"""

from collections.abc import Sequence
from statistics import fmean, stdev

from llmopt.bench.metrics import e2e_s, tpot_s
from llmopt.bench.percentiles import min_samples
from llmopt.results.schema import LoadSpec, RequestRecord, RunRecord, ValidityCheck

SHOWN_PERCENTILE = 50  # the report's table shows medians
NEGLIGIBLE_LAG_S = 0.001
MAX_MEDIAN_LAG_SHARE = 0.01  # of the median end-to-end time
MAX_TAIL_LAG_SHARE = 0.05  # the same, at p99
MAX_SPREAD = 0.10  # coefficient of variation above which a machine counts as noisy
LITTLE_TOLERANCE = 0.05
MIN_TICKS = 20  # fewer samples of the requests in flight decide nothing


def check_cell(load: LoadSpec, runs: Sequence[RunRecord]) -> tuple[ValidityCheck, ...]:
    """Judge the runs of one cell."""
    assert runs, "a cell without runs has an error, not checks"
    requests = [request for run in runs for request in run.requests]
    served = [request for request in requests if request.error is None]
    return (
        check_errors(requests),
        check_lengths("output-length", [r.num_output_tokens for r in served], load.output_tokens),
        check_lengths("prompt-length", [r.num_prompt_tokens for r in served], load.prompt_tokens),
        check_warmup(load, runs),
        check_client_lag(runs, served),
        check_samples(served),
        check_spread(runs),
        check_littles_law(runs),
    )


def check_errors(requests: Sequence[RequestRecord]) -> ValidityCheck:
    """No request failed: a percentile over the survivors would flatter."""
    errors = [request.error for request in requests if request.error is not None]
    detail = f"{len(requests) - len(errors)} of {len(requests)} requests served"
    if errors:
        detail += f"; first error: {errors[0]}"
    return ValidityCheck("requests-served", not errors and bool(requests), detail)


def check_lengths(name: str, found: Sequence[int], wanted: int) -> ValidityCheck:
    """Every request has the length that was asked for: no early stop, no silent truncation."""
    wrong = [length for length in found if length != wanted]
    if wrong:
        detail = (
            f"{len(wrong)} of {len(found)} have {min(wrong)} to {max(wrong)} tokens, not {wanted}"
        )
    else:
        detail = f"{len(found)} of {len(found)} have {wanted} tokens"
    return ValidityCheck(name, not wrong and bool(found), detail)


def check_warmup(load: LoadSpec, runs: Sequence[RunRecord]) -> ValidityCheck:
    """Each run was preceded by the warm-up that was asked for."""
    fewest = min(run.num_warmup_requests for run in runs)
    detail = f"at least {fewest} of {load.warmup_requests} warm-up requests served before each run"
    return ValidityCheck("warm-up", fewest >= load.warmup_requests, detail)


def check_client_lag(runs: Sequence[RunRecord], served: Sequence[RequestRecord]) -> ValidityCheck:
    """The client was not the bottleneck: its event loop is late by little beside what it times."""
    medians = [run.step_stats[key] for run in runs if (key := "client_lag_p50_s") in run.step_stats]
    tails = [run.step_stats[key] for run in runs if (key := "client_lag_p99_s") in run.step_stats]
    durations = sorted(value for value in map(e2e_s, served) if value is not None)
    if not medians or not durations:
        return ValidityCheck("client-lag", True, "too short to be observed")
    typical_s = durations[len(durations) // 2]
    median_limit_s = max(MAX_MEDIAN_LAG_SHARE * typical_s, NEGLIGIBLE_LAG_S)
    tail_limit_s = max(MAX_TAIL_LAG_SHARE * typical_s, NEGLIGIBLE_LAG_S)
    passed = max(medians) <= median_limit_s and max(tails) <= tail_limit_s
    detail = (
        f"event loop late by {1e3 * max(medians):.2f} ms at p50 "
        f"(limit {1e3 * median_limit_s:.3g} ms), "
        f"{1e3 * max(tails):.2f} ms at p99 (limit {1e3 * tail_limit_s:.3g} ms)"
    )
    return ValidityCheck("client-lag", passed, detail)


def check_samples(served: Sequence[RequestRecord]) -> ValidityCheck:
    """There are enough requests for a 95 % interval of the percentile that is shown."""
    needed = min_samples(SHOWN_PERCENTILE)
    supported = [p for p in (50, 90, 95, 99) if len(served) >= min_samples(p)]
    detail = f"{len(served)} requests support " + (
        f"percentiles up to p{supported[-1]}" if supported else f"no percentile; p50 needs {needed}"
    )
    return ValidityCheck("samples", len(served) >= needed, detail)


def check_spread(runs: Sequence[RunRecord]) -> ValidityCheck:
    """How far the runs' TPOT scatters: a noisy machine is a warning in the detail, no failure."""
    values = [fmean(tpots) for run in runs if (tpots := _tpots(run))]
    if len(values) < 2:
        return ValidityCheck("spread", True, "one run: the spread between runs is unknown")
    variation = stdev(values) / fmean(values)
    detail = f"TPOT varies by {variation:.1%} between {len(values)} runs"
    if variation > MAX_SPREAD:
        detail += f": above {MAX_SPREAD:.0%}, a noisy machine"
    return ValidityCheck("spread", True, detail)


def check_littles_law(runs: Sequence[RunRecord]) -> ValidityCheck:
    """L = lambda * W in every run (Little 1961).

    L, the mean number of requests in flight, was sampled by the client's ticker; lambda * W is the
    sum of the times between schedule and end / duration. The two are observed independently, so a
    lost request or a clock that jumps shows here.
    """
    deviations = []
    for run in runs:
        if run.step_stats.get("client_num_ticks", 0) < MIN_TICKS:
            continue
        if any(request.done_s is None for request in run.requests):
            continue
        sampled = run.step_stats["client_mean_in_flight"]
        times = [r.done_s - r.scheduled_s for r in run.requests if r.done_s is not None]
        deviations.append(abs(sampled / (sum(times) / run.duration_s) - 1))
    if not deviations:
        return ValidityCheck("littles-law", True, "too short to be observed")
    worst = max(deviations)
    detail = f"requests in flight deviate from arrival rate x time by at most {worst:.1%}"
    return ValidityCheck("littles-law", worst <= LITTLE_TOLERANCE, detail)


def _tpots(run: RunRecord) -> list[float]:
    values = (tpot_s(request) for request in run.requests if request.error is None)
    return [value for value in values if value is not None]
