"""What was asked of a backend: the shape of the load, the requests in it, the bounds to keep.

Part of the schema (`llmopt.results.schema`). The law: plain data from which, with a seed, the same
load can be made again. Fields with a default came later than the first files.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LengthSpec:
    """How the lengths of prompts or outputs are distributed, in tokens."""

    kind: Literal["fixed", "uniform", "lognormal", "empirical"]
    mean: float
    low: int  # no length is below
    high: int  # no length is above
    sigma: float | None = None  # of the logarithm, for "lognormal"
    source: str | None = None  # the table, for "empirical"


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """What the requests of a load are made of, if not of one length each."""

    prompt: LengthSpec
    output: LengthSpec
    source: str = "text"  # "text", "random tokens", or the file that the prompts or times are from
    source_sha256: str | None = None
    prefix_groups: int = 0  # each with a beginning of its own, which its prompts share
    prefix_tokens: int = 0
    turns: int = 1  # of a conversation
    ignore_eos: bool = True
    unique_prompts: bool = True  # no two prompts begin alike, but for the declared prefixes


SloMetric = Literal["ttft", "tpot", "itl", "e2e"]


@dataclass(frozen=True, slots=True)
class SloTerm:
    """A bound on a latency. `percent`: the percentile that must keep it; None: every request."""

    metric: SloMetric
    limit_ms: float
    percent: float | None = None


LoadKind = Literal["closed", "constant", "poisson", "gamma", "burst", "ramp", "trace"]


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What was asked of the backend.

    A closed loop keeps `concurrency` requests in flight; of the other kinds it is the most that the
    backend was set up to serve at once. `prompt_tokens` and `output_tokens` are the fixed lengths,
    or the means (rounded) of a `workload` whose lengths vary.
    """

    concurrency: int
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    warmup_requests: int
    kind: LoadKind = "closed"
    rate: float | None = None  # requests per second; of a ramp the last one
    start_rate: float | None = None  # of a ramp the first one
    num_steps: int | None = None  # of a ramp; None: it rises steadily
    burstiness: float | None = None  # shape of the gamma distribution; 1 is Poisson
    duration_s: float | None = None
    time_scale: float | None = None  # of a trace: 2 replays it at half its speed
    workload: WorkloadSpec | None = None
    slo: tuple[SloTerm, ...] = ()
