"""The metrics by definition id: what each number is, in one line, and where a summary has it.

Knows nothing about events. The law: a number that is shown has an id in this table; the names of
other tools for the same thing are in `llmopt.bench.peer_definitions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric: its unit, and how it follows from the events."""

    unit: str
    formula: str
    field: str  # of Summary; "group.name" within a part of it


_TABLE: tuple[tuple[str, str, str, str], ...] = (
    ("ttft", "ms", "first token - scheduled", "ttft_ms"),
    ("ttft_sent", "ms", "first token - sent", "ttft_sent_ms"),
    ("tpot", "ms", "(last token - first token) / (output tokens - 1)", "tpot_ms"),
    ("ntpot", "ms", "(last token - scheduled) / output tokens", "ntpot_ms"),
    ("itl", "ms", "gap between two events / tokens of the later one", "itl_ms"),
    ("icl", "ms", "gap between two events, whatever they hold", "icl_ms"),
    ("e2e", "ms", "last token - scheduled", "e2e_ms"),
    ("e2e_sent", "ms", "last token - sent", "e2e_sent_ms"),
    ("client_lag", "ms", "sent - scheduled", "client_lag_ms"),
    ("output_throughput", "tok/s", "output tokens / whole run", "output_throughput"),
    ("input_throughput", "tok/s", "prompt tokens / whole run", "input_throughput"),
    ("total_throughput", "tok/s", "prompt and output tokens / whole run", "total_throughput"),
    (
        "output_throughput_steady",
        "tok/s",
        "output tokens / time between the first and last moment with as many requests in flight "
        "as half of the time",
        "steady.output_throughput",
    ),
    ("request_throughput", "requests/s", "served requests / whole run", "request_throughput"),
    (
        "goodput",
        "requests/s",
        "requests served within every bound of the SLO / whole run",
        "goodput.requests_per_s",
    ),
    (
        "goodput_tokens",
        "tok/s",
        "output tokens of the requests within the SLO / whole run",
        "goodput.tokens_per_s",
    ),
    ("error_share", "", "failed requests / all requests", "error_share"),
    ("peak_concurrency", "requests", "most requests in flight at once", "peak_concurrency"),
    ("mean_concurrency", "requests", "requests in flight, over the time", "mean_concurrency"),
    ("tokens_per_event", "", "output tokens / stream events with tokens", "tokens_per_event"),
    ("cache_hit_rate", "", "prompt tokens found in a cache / prompt tokens", "cache_hit_rate"),
    ("acceptance_rate", "", "draft tokens kept / draft tokens", "acceptance_rate"),
    ("num_preemptions", "", "times a request lost its cache", "num_preemptions"),
    ("peak_kv_use", "", "most blocks in use / blocks of the cache", "peak_kv_use"),
    ("peak_memory", "bytes", "most memory of the device in use", "peak_memory_bytes"),
    ("startup", "s", "until the backend was ready", "startup_s"),
    ("mfu", "", "useful FLOP/s / the matrix-product rate measured here", "mfu"),
    ("mbu", "", "bytes moved per s / the read bandwidth measured here", "mbu"),
    ("mfu_datasheet", "", "useful FLOP/s / the data sheet's dense rate", "mfu_datasheet"),
    ("mbu_datasheet", "", "bytes moved per s / the data sheet's bandwidth", "mbu_datasheet"),
    ("joules_per_token", "J", "energy of the runs / output tokens", "joules_per_token"),
    (
        "cost_per_million_tokens",
        "",
        "price per second / output tokens per second x 10^6",
        "cost_per_million_tokens",
    ),
)

DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {name: Definition(unit, formula, field) for name, unit, formula, field in _TABLE}
)
