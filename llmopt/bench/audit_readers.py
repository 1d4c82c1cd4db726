"""Result files of vllm bench, GuideLLM and AIPerf as raw events of ours.

Knows nothing about checks. The law: a field that a file lacks stays unknown. Formats as read in the
tools' sources: vLLM `vllm/benchmarks/serve.py` with `--save-detailed`, GuideLLM 0.7
`schemas/request_stats.py`, AIPerf `docs/tutorials/working-with-profile-exports.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean
from types import MappingProxyType
from typing import Any

from llmopt.bench.audit_files import Document
from llmopt.bench.peer_definitions import restate
from llmopt.errors import ResultError
from llmopt.results.schema import RequestRecord, RunRecord

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class ForeignRun:
    """One run of another tool. `printed`: name -> (its number, the same from its own events)."""

    title: str
    record: RunRecord
    has_times: bool  # the requests' places on the clock are known
    has_schedule: bool  # and when each was wanted
    concurrency: int | None = None
    max_tokens: int | None = None
    prompt_tokens: int | None = None
    printed: dict[str, tuple[float, float]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def _is_vllm(documents: Sequence[Document]) -> bool:
    return all("output_throughput" in one and "completed" in one for one in documents)


def _read_vllm(documents: Sequence[Document]) -> list[ForeignRun]:
    return [_vllm_run(one) for one in documents]


def _vllm_run(one: Document) -> ForeignRun:
    if "ttfts" not in one or "output_lens" not in one:
        raise ResultError(
            "The file of vllm bench has no single requests", "Run it with --save-detailed."
        )
    size = len(one["ttfts"])
    starts = one.get("start_times")
    queued = one.get("queue_times")
    latencies = one.get("latencies")
    errors = one.get("errors") or [""] * size
    first = min(starts) if starts else 0.0
    requests = []
    for i in range(size):
        itls, failed = one["itls"][i], bool(errors[i])
        sent = starts[i] - first if starts else 0.0
        times = tuple(accumulate([sent + one["ttfts"][i], *itls])) if not failed else ()
        latency = latencies[i] if latencies else (times[-1] - sent if times else 0.0)
        requests.append(
            RequestRecord(
                request_id=str(i),
                num_prompt_tokens=one["input_lens"][i],
                num_output_tokens=one["output_lens"][i],
                scheduled_s=sent - (queued[i] if queued else 0.0),
                sent_s=sent,
                first_token_s=times[0] if times else None,
                last_token_s=None if failed else sent + latency,
                done_s=None if failed else sent + latency,
                token_times_s=times,
                token_counts=(),
                finish_reason=None,
                error=errors[i] or None,
            )
        )
    record = RunRecord(0, str(one.get("date", "")), 0, one["duration"], tuple(requests), {})
    again = restate(record, "vllm")
    names = ("output_throughput", "mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms")
    return ForeignRun(
        title=str(one.get("model_id", "vllm bench")),
        record=record,
        has_times=starts is not None,
        has_schedule=starts is not None and queued is not None,
        concurrency=one.get("max_concurrency"),
        printed={name: (one[name], again[name]) for name in names if name in one and name in again},
        missing=("token-counts: events are chunks, their tokens are not in the file",),
    )


def _is_guidellm(documents: Sequence[Document]) -> bool:
    return len(documents) == 1 and isinstance(documents[0].get("benchmarks"), list)


def _read_guidellm(documents: Sequence[Document]) -> list[ForeignRun]:
    return [_guidellm_run(one) for one in documents[0]["benchmarks"]]


def _guidellm_run(one: Document) -> ForeignRun:
    groups = one["requests"]
    kept = [
        (request, error)
        for group, error in (("successful", None), ("errored", "errored"), ("incomplete", "cut"))
        for request in groups.get(group) or []
    ]
    starts = [_timings(request).get("request_start") for request, _ in kept]
    first = min((start for start in starts if start is not None), default=0.0)
    requests = [_guidellm_request(request, error, first) for request, error in kept]
    ends = [request.done_s for request in requests if request.done_s is not None]
    duration = one.get("duration") or max(ends, default=0.0)
    config = one.get("config") or {}
    return ForeignRun(
        title=str((config.get("strategy") or {}).get("type_", "guidellm")),
        record=RunRecord(0, str(one.get("start_time", "")), 0, duration, tuple(requests), {}),
        has_times=True,
        has_schedule=any(_timings(r).get("targeted_start") is not None for r, _ in kept),
        missing=("token-counts: times between the first and last token are not measured",),
    )


def _timings(request: Document) -> Document:
    found: Document = (request.get("info") or {}).get("timings") or {}
    return found


def _guidellm_request(request: Document, error: str | None, first: float) -> RequestRecord:
    timings = _timings(request)

    def at(name: str) -> float | None:
        value = timings.get(name)
        return None if value is None else value - first

    sent = at("request_start") or 0.0
    wanted = at("targeted_start")
    return RequestRecord(
        request_id=str(request.get("request_id", "")),
        num_prompt_tokens=request.get("prompt_tokens") or 0,
        num_output_tokens=request.get("output_tokens") or 0,
        scheduled_s=sent if wanted is None else min(wanted, sent),
        sent_s=sent,
        first_token_s=at("first_token_iteration"),
        last_token_s=at("last_token_iteration"),
        done_s=at("request_end"),
        token_times_s=(),
        token_counts=(),
        finish_reason=None,
        error=error and str((request.get("info") or {}).get("error") or error),
    )


def _is_aiperf(documents: Sequence[Document]) -> bool:
    return all("metadata" in one and "metrics" in one for one in documents)


def _read_aiperf(documents: Sequence[Document]) -> list[ForeignRun]:
    kept = [
        d for d in documents if d["metadata"].get("benchmark_phase", "profiling") == "profiling"
    ]
    if not kept:
        raise ResultError("The AIPerf file has no profiled requests", "Give a longer run.")
    first = min(one["metadata"]["request_start_ns"] for one in kept)
    requests = [_aiperf_request(one, first) for one in kept]
    end = max((r.done_s for r in requests if r.done_s is not None), default=0.0)
    return [
        ForeignRun(
            title="AIPerf",
            record=RunRecord(0, "", 0, end, tuple(requests), {}),
            has_times=True,
            has_schedule=False,
        )
    ]


def _aiperf_request(one: Document, first_ns: int) -> RequestRecord:
    metadata, error = one["metadata"], one.get("error")
    sent = (metadata["request_start_ns"] - first_ns) * _NS
    ttft, latency = _metric_ms(one, "time_to_first_token"), _metric_ms(one, "request_latency")
    gaps = (one["metrics"].get("inter_chunk_latency") or {}).get("value") or []
    token = None if ttft is None or error else sent + ttft / 1e3
    times = () if token is None else tuple(accumulate([token, *(gap / 1e3 for gap in gaps)]))
    return RequestRecord(
        request_id=str(metadata.get("x_request_id", "")),
        num_prompt_tokens=int(_metric(one, "input_sequence_length") or 0),
        num_output_tokens=int(_metric(one, "output_sequence_length") or 0),
        scheduled_s=sent,
        sent_s=sent,
        first_token_s=token,
        last_token_s=None if latency is None or error else sent + latency / 1e3,
        done_s=(metadata["request_end_ns"] - first_ns) * _NS,
        token_times_s=times,
        token_counts=(),
        finish_reason=None,
        error=f"{error.get('type')}: {error.get('message')}" if error else None,
    )


def _metric(one: Document, name: str) -> float | None:
    """The value of a metric; of a list its mean."""
    value: Any = (one["metrics"].get(name) or {}).get("value")
    return fmean(value) if isinstance(value, list) and value else value or None


def _metric_ms(one: Document, name: str) -> float | None:
    value = _metric(one, name)
    unit = (one["metrics"].get(name) or {}).get("unit", "ms")
    return None if value is None else value * {"ms": 1.0, "s": 1e3, "sec": 1e3, "ns": 1e-6}[unit]


_Reader = tuple[
    Callable[[Sequence[Document]], bool], Callable[[Sequence[Document]], list[ForeignRun]]
]
FOREIGN: Mapping[str, _Reader] = MappingProxyType(
    {
        "vllm bench": (_is_vllm, _read_vllm),
        "GuideLLM": (_is_guidellm, _read_guidellm),
        "AIPerf": (_is_aiperf, _read_aiperf),
    }
)
