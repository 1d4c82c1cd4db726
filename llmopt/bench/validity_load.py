"""Checks of the client and of the load: was it sent as planned, and did the backend get all of it?

Knows nothing about lengths or machines; part of `llmopt.bench.validity`, whose law it keeps.
"""

from collections.abc import Sequence
from statistics import median

from llmopt.bench.latencies import client_lag_s, e2e_s, ttft_s
from llmopt.bench.percentiles import percentile
from llmopt.bench.timeline import decoding, timeline
from llmopt.results.schema import LoadSpec, RequestRecord, RunRecord, ValidityCheck

NEGLIGIBLE_LAG_S = 0.001
MAX_MEDIAN_LAG_SHARE = 0.01  # of the median end-to-end time
MAX_TAIL_LAG_SHARE = 0.05  # the same, at p99
MAX_RATE_DEVIATION = 0.05
MIN_PARALLEL_TOKENS = 8  # shorter outputs may not overlap though they could


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


def check_omission(requests: Sequence[RequestRecord]) -> ValidityCheck:
    """The client sent requests when the load wanted them: no queue of its own (Tene: coordinated
    omission). Latencies count from the schedule in any case; here the lateness itself is judged.
    """
    lags = sorted(map(client_lag_s, requests))
    durations = sorted(value for value in map(e2e_s, requests) if value is not None)
    if not lags or not durations:
        return ValidityCheck("coordinated-omission", True, "no request was served")
    typical_s = percentile(durations, 50)
    median_limit_s = max(MAX_MEDIAN_LAG_SHARE * typical_s, NEGLIGIBLE_LAG_S)
    tail_limit_s = max(MAX_TAIL_LAG_SHARE * typical_s, NEGLIGIBLE_LAG_S)
    middle_s, tail_s = percentile(lags, 50), percentile(lags, 99)
    detail = (
        f"sent {1e3 * middle_s:.2f} ms after the schedule at p50 (limit {1e3 * median_limit_s:.3g} "
        f"ms), {1e3 * tail_s:.2f} ms at p99 (limit {1e3 * tail_limit_s:.3g} ms)"
    )
    passed = middle_s <= median_limit_s and tail_s <= tail_limit_s
    return ValidityCheck("coordinated-omission", passed, detail)


def check_arrival_rate(load: LoadSpec, runs: Sequence[RunRecord]) -> ValidityCheck:
    """An open loop sent its requests at the rate at which they were scheduled."""
    if load.kind == "closed":
        return ValidityCheck("arrival-rate", True, "a closed loop has no rate of its own")
    worst, sent_rates = 0.0, []
    for run in runs:
        scheduled = [request.scheduled_s for request in run.requests]
        sent = [request.sent_s for request in run.requests]
        if len(sent) < 2 or max(scheduled) == min(scheduled) or max(sent) == min(sent):
            continue
        sent_rates.append((len(sent) - 1) / (max(sent) - min(sent)))
        wanted = (len(sent) - 1) / (max(scheduled) - min(scheduled))
        worst = max(worst, abs(sent_rates[-1] / wanted - 1))
    if not sent_rates:
        return ValidityCheck("arrival-rate", True, "all requests at once")
    detail = f"{median(sent_rates):.3g} requests/s sent, at most {worst:.1%} off the schedule"
    return ValidityCheck("arrival-rate", worst <= MAX_RATE_DEVIATION, detail)


def check_parallelism(runs: Sequence[RunRecord]) -> ValidityCheck:
    """The backend worked on requests together, if it had several: no queue behind a single slot.

    Judged by outputs of at least 8 tokens: at some moment two of them must be under way.
    """
    served_alone = 0
    judged = 0
    for run in runs:
        lengths = [r.num_output_tokens for r in run.requests if r.error is None]
        in_flight = timeline(run)
        if min(lengths, default=0) < MIN_PARALLEL_TOKENS or in_flight.usual_level() < 2:
            continue
        judged += 1
        served_alone += decoding(run).peak < 2
    if not judged:
        return ValidityCheck("parallelism", True, "no two long requests in flight: not observed")
    detail = f"decoded together in {judged - served_alone} of {judged} runs"
    if served_alone:
        detail += "; in the others requests were served one after another"
    return ValidityCheck("parallelism", served_alone == 0, detail)


def check_start_burst(load: LoadSpec, runs: Sequence[RunRecord]) -> ValidityCheck:
    """How much of a closed loop is its start, when all requests come at once: said, no failure."""
    if load.kind != "closed":
        return ValidityCheck("start-burst", True, "an open loop does not start all at once")
    first: list[float] = []
    later: list[float] = []
    for run in runs:
        ordered = sorted(run.requests, key=lambda request: request.scheduled_s)
        for index, request in enumerate(ordered):
            value = ttft_s(request)
            if value is not None and request.error is None:
                (first if index < load.concurrency else later).append(1e3 * value)
    share = len(first) / max(1, len(first) + len(later))
    detail = f"{share:.0%} of the requests started together"
    if first and later:
        detail += f": TTFT p50 {median(first):.3g} ms, of the later ones {median(later):.3g} ms"
    return ValidityCheck("start-burst", True, detail)
