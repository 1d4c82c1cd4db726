"""Raw events: what happened to each request of a run, and to the machine meanwhile.

Part of the schema (`llmopt.results.schema`). The law: a record says what was observed and holds no
derived number; times of one run lie on one monotonic clock whose zero is the start of the run.
Fields with a default came later than the first files.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """The raw events of one request. `None` for a time that never came."""

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int
    scheduled_s: float  # when the load schedule wanted it
    sent_s: float  # when the client handed it to the backend
    first_token_s: float | None
    last_token_s: float | None
    done_s: float | None  # when the stream ended
    token_times_s: tuple[float, ...]  # one per stream event
    token_counts: tuple[int, ...]  # tokens in that event
    finish_reason: str | None
    error: str | None = None
    num_preemptions: int = 0
    num_prompt_tokens_sent: int | None = None  # by the client's count; the other is the backend's
    num_cached_tokens: int | None = None  # of the prompt, found in a cache; None: not said
    max_tokens: int | None = None  # output tokens that were asked for
    first_event_s: float | None = None  # of the stream, such as a role without a token
    num_events: int | None = None  # of the stream that had choices, with those without a token
    counted_by: str | None = None  # "backend", "client" (its tokenizer), "events" (one each)
    tenant: str | None = None
    conversation: str | None = None
    turn: int | None = None  # of the conversation, from 0
    server_timings_s: dict[str, float] | None = None  # what the server says of itself
    empty_event_times_s: tuple[float, ...] | None = None  # had choices and no token, as a role does
    first_answer_s: float | None = None  # first token after the reasoning, where a server tells
    num_reasoning_events: int = 0  # with tokens that are no part of the answer


@dataclass(frozen=True, slots=True)
class EnergyRecord:
    """Energy of the counters that could be read, over one run."""

    joules: float
    source: str  # "nvml", "rapl"
    covers: str  # in words: what the counter includes, such as "GPU only"


@dataclass(frozen=True, slots=True)
class MachineState:
    """What may drift while a machine works; `None`: not readable here."""

    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One repeat of the load."""

    repeat: int
    started_at: str  # ISO 8601, UTC
    seed: int
    duration_s: float
    requests: tuple[RequestRecord, ...]
    step_stats: dict[str, float]  # counters of the engine over this run, such as num_steps
    num_warmup_requests: int = 0  # served before this run, not recorded
    max_client_lag_s: float | None = None  # worst lateness of the client's own event loop
    startup_s: float | None = None  # until the backend was ready to serve this run
    cache_emptied: bool | None = None  # before the run; None: the backend cannot or does not say
    peak_memory_bytes: int | None = None  # of the device that ran the model
    energy: EnergyRecord | None = None
    machine_before: MachineState | None = None
    machine_after: MachineState | None = None
    prompt_variant: int = 0  # with the seed it decides the prompts; 0: the seed alone does
