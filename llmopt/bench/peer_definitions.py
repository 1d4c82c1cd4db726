"""The same events under the definitions of other tools: vLLM, GuideLLM, AIPerf, MLPerf.

Knows nothing about running those tools. The law: one set of raw events in, each tool's own names,
units, formulas and statistics out; what the events cannot say is left out. Definitions as read in
the tools' sources: vLLM `vllm/benchmarks/serve.py`, GuideLLM 0.7 `schemas/request_stats.py`, AIPerf
`docs/metrics-reference.md`, MLPerf loadgen `results.cc` with `inference_rules.adoc`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median, pstdev
from types import MappingProxyType

from llmopt.bench.latencies import e2e_s, e2e_sent_s, icl_s, tpot_s, ttft_s, ttft_sent_s
from llmopt.bench.percentiles import percentile
from llmopt.bench.timeline import timeline
from llmopt.errors import UsageError
from llmopt.results.schema import RequestRecord, RunRecord

Numbers = dict[str, float]


def restate(run: RunRecord, tool: str) -> Numbers:
    """The numbers that a tool would have printed for this run, by its own names.

    Raises UsageError for a tool that is not known.
    """
    if tool not in TOOLS:
        raise UsageError(
            f"llmopt does not know the definitions of {tool!r}",
            f"Choose one of {', '.join(TOOLS)}.",
        )
    served = [request for request in run.requests if request.error is None]
    return TOOLS[tool](run, served) if served and run.duration_s > 0 else {}


def _vllm(run: RunRecord, served: Sequence[RequestRecord]) -> Numbers:
    """Times from sending; TTFT to the first event with choices, ITL between events, not tokens."""
    output = sum(request.num_output_tokens for request in served)
    total = output + sum(request.num_prompt_tokens for request in served)
    numbers: Numbers = {
        "completed": len(served),
        "failed": len(run.requests) - len(served),
        "request_throughput": len(served) / run.duration_s,
        "output_throughput": output / run.duration_s,
        "total_token_throughput": total / run.duration_s,
        "max_concurrent_requests": timeline(_only(run, served)).peak,
    }
    samples: dict[str, Iterable[float | None]] = {
        "ttft": [_vllm_ttft_s(request) for request in served],
        "tpot": [_vllm_tpot_s(request) for request in served],
        "itl": [gap for request in served for gap in _vllm_itl_s(request)],
        "e2el": map(e2e_sent_s, served),
    }
    for name, found in samples.items():
        values = _known(found)
        if values:
            numbers[f"mean_{name}_ms"] = 1e3 * fmean(values)
            numbers[f"median_{name}_ms"] = 1e3 * median(values)
            numbers[f"std_{name}_ms"] = 1e3 * pstdev(values)
            numbers[f"p99_{name}_ms"] = 1e3 * percentile(sorted(values), 99)
    return numbers


def _guidellm(run: RunRecord, served: Sequence[RequestRecord]) -> Numbers:
    """TPOT holds the first token; ITL is what others call TPOT; latency ends with the stream."""
    tpots = [_over(e2e_sent_s(request), request.num_output_tokens) for request in served]
    numbers = {
        "requests_per_second": len(served) / run.duration_s,
        "output_tokens_per_second": _total_output(served) / run.duration_s,
        "request_concurrency": timeline(_only(run, served)).mean(run.duration_s),
    }
    return (
        numbers
        | _spread("time_to_first_token_ms", map(ttft_sent_s, served), 1e3)
        | _spread("time_per_output_token_ms", tpots, 1e3)
        | _spread("inter_token_latency_ms", map(tpot_s, served), 1e3)
        | _spread("request_latency", [_until_done_s(request) for request in served], 1.0)
    )


def _aiperf(run: RunRecord, served: Sequence[RequestRecord]) -> Numbers:
    """ITL is (latency - TTFT) / (N - 1); the gaps between events are its inter-chunk latency."""
    start = min(request.sent_s for request in served)
    end = max(_known(map(_end_s, served)), default=start)
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


def _vllm_ttft_s(request: RequestRecord) -> float | None:
    if request.first_event_s is None:
        return ttft_sent_s(request)
    return request.first_event_s - request.sent_s


def _vllm_tpot_s(request: RequestRecord) -> float | None:
    """(latency - its own TTFT) / (N - 1)."""
    ttft, latency = _vllm_ttft_s(request), e2e_sent_s(request)
    if ttft is None or latency is None or request.num_output_tokens <= 1:
        return None
    return (latency - ttft) / (request.num_output_tokens - 1)


def _vllm_itl_s(request: RequestRecord) -> list[float]:
    """Gaps between events; one without a token comes first where there was one."""
    gaps = list(icl_s(request))
    if request.first_event_s is None or request.first_token_s is None:
        return gaps
    role_s = request.first_token_s - request.first_event_s
    return [role_s, *gaps] if role_s > 0 else gaps


def _until_done_s(request: RequestRecord) -> float | None:
    return None if request.done_s is None else request.done_s - request.sent_s


def _end_s(request: RequestRecord) -> float | None:
    return request.done_s if request.last_token_s is None else request.last_token_s


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


def _spread(name: str, values: Iterable[float | None], unit: float) -> Numbers:
    """Mean, median and tails under "<name>.<statistic>"."""
    ordered = sorted(_known(values))
    if not ordered:
        return {}
    tails = {f"{name}.p{p}": unit * percentile(ordered, p) for p in (50, 90, 95, 99)}
    return {f"{name}.mean": unit * fmean(ordered)} | tails
