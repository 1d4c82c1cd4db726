"""The same events under the definitions of other tools: vLLM, GuideLLM, AIPerf, MLPerf.

Knows nothing about running those tools. The law: one set of raw events in, each tool's own names,
units, formulas and statistics out; what the events cannot say is left out. Definitions as read in
the tools' sources: vLLM 0.33 `vllm/benchmarks/serve.py` and
`lib/endpoint_request_func.py`, GuideLLM 0.8 `schemas/base/request_stats.py`, `statistics.py` and
`benchmark/schemas/metrics.py`, AIPerf 0.13 `metrics/types/`, MLPerf loadgen `results.cc` with
`inference_rules.adoc`.

One thing differs: a token without text, such as a special one, is an event with a token here, and
in vLLM; GuideLLM and AIPerf do not see it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median, pstdev
from types import MappingProxyType

from llmopt.bench.latencies import e2e_s, e2e_sent_s, icl_s, tpot_s, ttft_s, ttft_sent_s
from llmopt.bench.percentiles import percentile
from llmopt.bench.timeline import timeline
from llmopt.errors import UsageError
from llmopt.results.schema import RequestRecord, RunRecord

Numbers = dict[str, float]

_TAILS = (50, 90, 95, 99)


def restate(run: RunRecord, tool: str, *, is_chat: bool = False) -> Numbers:
    """The numbers that a tool would have printed for this run, by its own names.

    `is_chat`: the chat endpoint was asked, where no tool sees events without output.
    Raises UsageError for a tool that is not known.
    """
    if tool not in TOOLS:
        raise UsageError(
            f"llmopt does not know the definitions of {tool!r}",
            f"Choose one of {', '.join(TOOLS)}.",
        )
    served = [request for request in run.requests if request.error is None]
    if is_chat:
        served = [replace(request, empty_event_times_s=()) for request in served]
    return TOOLS[tool](run, served) if served and run.duration_s > 0 else {}


def _vllm(run: RunRecord, served: Sequence[RequestRecord]) -> Numbers:
    """Times from sending, of events with choices, whether they hold tokens or not.

    A role before the first token is the TTFT; a finish reason after the last one is the end, and
    the gap before it an ITL. The event of the usage has no choices and moves nothing.
    """
    events = [_choice_times_s(request) for request in served]
    output = _total_output(served)
    total = output + sum(request.num_prompt_tokens for request in served)
    numbers: Numbers = {
        "completed": len(served),
        "failed": len(run.requests) - len(served),
        "request_throughput": len(served) / run.duration_s,
        "output_throughput": output / run.duration_s,
        "total_token_throughput": total / run.duration_s,
    } | _vllm_peaks(served, events)
    pairs = list(zip(served, events, strict=True))
    samples: dict[str, list[float]] = {
        "ttft": [times[0] - request.sent_s for request, times in pairs],
        "tpot": [
            (times[-1] - times[0]) / (request.num_output_tokens - 1)
            for request, times in pairs
            if request.num_output_tokens > 1
        ],
        "itl": [later - earlier for times in events for earlier, later in pairwise(times)],
        "e2el": [times[-1] - request.sent_s for request, times in pairs],
    }
    for name, values in samples.items():
        if values:
            numbers[f"mean_{name}_ms"] = 1e3 * fmean(values)
            numbers[f"median_{name}_ms"] = 1e3 * median(values)
            numbers[f"std_{name}_ms"] = 1e3 * pstdev(values)
            numbers[f"p99_{name}_ms"] = 1e3 * percentile(sorted(values), 99)
    return numbers


def _vllm_peaks(served: Sequence[RequestRecord], events: Sequence[Sequence[float]]) -> Numbers:
    """Counts in whole seconds from the first request: of events, and of the requests that a second
    saw anything of, which is more than were in flight at once.
    """
    start = min(request.sent_s for request in served)
    tokens = Counter(int(at - start) for times in events for at in times)
    requests = Counter(
        second
        for request, times in zip(served, events, strict=True)
        for second in range(int(request.sent_s - start), int(times[-1] - start) + 1)
    )
    return {
        "max_output_tokens_per_s": max(tokens.values()),
        "max_concurrent_requests": max(requests.values()),
    }


def _guidellm(run: RunRecord, served: Sequence[RequestRecord]) -> Numbers:
    """TPOT holds the first token; ITL is what others call TPOT; latency ends with the stream.

    Both are weighted by the tokens that they are means of. Rates are over the whole run.
    """
    tpots = [(_over(e2e_sent_s(r), r.num_output_tokens), r.num_output_tokens) for r in served]
    itls = [(tpot_s(request), request.num_output_tokens - 1) for request in served]
    numbers = {
        "requests_per_second": len(served) / run.duration_s,
        "output_tokens_per_second": _total_output(served) / run.duration_s,
        "request_concurrency": timeline(_only(run, served)).mean(run.duration_s),
    }
    return (
        numbers
        | _weighted("time_to_first_token_ms", _alike(map(ttft_sent_s, served)), 1e3)
        | _weighted("time_per_output_token_ms", tpots, 1e3)
        | _weighted("inter_token_latency_ms", itls, 1e3)
        | _weighted("request_latency", _alike(map(_until_done_s, served)), 1.0)
    )


def _aiperf(run: RunRecord, served: Sequence[RequestRecord]) -> Numbers:
    """ITL is (latency - TTFT) / (N - 1), as without `--per-chunk-usage`; the gaps between events
    with text are its inter-chunk latency. Rates are from the first request to the last text.
    """
    start = min(request.sent_s for request in served)
    end = max(_known(request.last_token_s for request in served), default=start)
    span = end - start or run.duration_s
    numbers = {
        "request_count": float(len(served)),
        "request_throughput": len(served) / span,
        "output_token_throughput": _total_output(served) / span,
    }
    per_user = [1 / value for value in _known(map(tpot_s, served)) if value > 0]
    return (
        numbers
        | _spread("time_to_first_token", map(ttft_sent_s, served), 1e3)
        | _spread("inter_token_latency", map(tpot_s, served), 1e3)
        | _spread("inter_chunk_latency", [g for r in served for g in icl_s(r)], 1e3)
        | _spread("request_latency", map(e2e_sent_s, served), 1e3)
        | _spread("output_token_throughput_per_user", per_user, 1.0)
    )


def _mlperf(run: RunRecord, served: Sequence[RequestRecord]) -> Numbers:
    """Latencies from the schedule, in ns; a percentile is the sample at floor(n * p)."""
    scheduled = [request.scheduled_s for request in run.requests]
    numbers = {
        "completed_samples_per_second": len(served) / run.duration_s,
        "tokens_per_second": _total_output(served) / run.duration_s,
    }
    if max(scheduled) > min(scheduled):
        span = max(scheduled) - min(scheduled)
        numbers["scheduled_samples_per_second"] = (len(scheduled) - 1) / span
    for name, of in (("latency", e2e_s), ("first_token_latency", ttft_s), ("tpot", tpot_s)):
        values = sorted(_known(map(of, served)))
        if not values:
            continue
        numbers[f"mean_{name}_ns"] = 1e9 * fmean(values)
        for percent in (50, 90, 95, 97, 99, 99.9):
            place = min(len(values) - 1, math.floor(len(values) * percent / 100))
            numbers[f"{percent:.2f}_percentile_{name}_ns"] = 1e9 * values[place]
    return numbers


TOOLS: Mapping[str, Callable[[RunRecord, Sequence[RequestRecord]], Numbers]] = MappingProxyType(
    {"vllm": _vllm, "guidellm": _guidellm, "aiperf": _aiperf, "mlperf": _mlperf}
)


def _choice_times_s(request: RequestRecord) -> list[float]:
    """When events with choices came. Of records that only know the first, it is the only one
    without a token.
    """
    empty = request.empty_event_times_s
    if empty is None:
        first = request.first_event_s
        empty = () if first is None or first == request.first_token_s else (first,)
    times = sorted((*request.token_times_s, *empty))
    if times:
        return times
    # a file of another tool may have no more than the first and the last
    return _known((request.first_token_s, request.last_token_s)) or [request.sent_s]


def _until_done_s(request: RequestRecord) -> float | None:
    return None if request.done_s is None else request.done_s - request.sent_s


def _over(seconds: float | None, count: int) -> float | None:
    return None if seconds is None or count == 0 else seconds / count


def _total_output(requests: Iterable[RequestRecord]) -> int:
    return sum(request.num_output_tokens for request in requests)


def _only(run: RunRecord, requests: Sequence[RequestRecord]) -> RunRecord:
    return RunRecord(
        run.repeat, run.started_at, run.seed, run.duration_s, tuple(requests), run.step_stats
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _alike(values: Iterable[float | None]) -> list[tuple[float | None, int]]:
    return [(value, 1) for value in values]


def _weighted(name: str, pairs: Iterable[tuple[float | None, int]], unit: float) -> Numbers:
    """Mean and tails of values that count as often as their weights say.

    A percentile is the smallest value at or below which that share of the weight lies.
    """
    ordered = sorted((value, count) for value, count in pairs if value is not None and count > 0)
    total = sum(count for _, count in ordered)
    if not total:
        return {}
    numbers = {f"{name}.mean": unit * sum(value * count for value, count in ordered) / total}
    for percent in _TAILS:
        passed = 0
        for value, count in ordered:
            passed += count
            if 100 * passed >= percent * total:
                numbers[f"{name}.p{percent}"] = unit * value
                break
    return numbers


def _spread(name: str, values: Iterable[float | None], unit: float) -> Numbers:
    """Mean, median and tails under "<name>.<statistic>"."""
    ordered = sorted(_known(values))
    if not ordered:
        return {}
    tails = {f"{name}.p{p}": unit * percentile(ordered, p) for p in _TAILS}
    return {f"{name}.mean": unit * fmean(ordered)} | tails
