"""The schema of a result file: one measured cell, as plain frozen data.

Knows nothing about how anything was measured, nor about files; imports no torch.
The law: everything that the report shows is in here, and every derived number (`Summary`) can be
computed again from the raw events (`RunRecord`), `CostModel` and `Ceilings`. Version 1 is what
this file says; a change of meaning or a removed field needs a new `SCHEMA_VERSION`.

Units are in the names: `_s` seconds, `_ms` milliseconds, `_bytes` bytes. Times of one run lie on
one monotonic clock whose zero is the start of the run. Fields of type `object` hold any JSON value.
"""

from dataclasses import dataclass
from typing import Literal

from llmopt.results.attribution import StepProfile
from llmopt.results.events import EnergyRecord, MachineState, RequestRecord, RunRecord
from llmopt.results.loads import LengthSpec, LoadKind, LoadSpec, SloMetric, SloTerm, WorkloadSpec
from llmopt.results.measuring import (
    ProbeRecord,
    ProbeRuns,
    SearchJournal,
    SearchRecord,
    StoppingRecord,
)
from llmopt.results.summary import Drift, Goodput, Interval, Percentiles, SteadySummary, Summary

__all__ = [
    "SCHEMA_VERSION",
    "BackendFacts",
    "CalibrationFacts",
    "Ceilings",
    "CellResult",
    "CostModel",
    "DeltaP",
    "Drift",
    "EnergyRecord",
    "Environment",
    "Goodput",
    "Interval",
    "LengthSpec",
    "LoadKind",
    "LoadSpec",
    "MachineState",
    "ModelFacts",
    "NoiseFloor",
    "PartialCell",
    "Percentiles",
    "ProbeRecord",
    "ProbeRuns",
    "QualityBucket",
    "QualityRecord",
    "QuantizationRecord",
    "RequestRecord",
    "RunRecord",
    "SearchJournal",
    "SearchRecord",
    "SloMetric",
    "SloTerm",
    "SteadySummary",
    "StepProfile",
    "StoppingRecord",
    "Summary",
    "ValidityCheck",
    "Verdict",
    "VerdictLabel",
    "WindowSums",
    "WindowedLayers",
    "WorkloadSpec",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Which weights were served, and how large they are."""

    name: str
    path_hash: str  # sha256 of the config, the files' headers and samples of the data
    architecture: str
    scheme: str  # "fp32", "bf16", "gptq-w4g64"
    compute_dtype: str  # dtype of the activations
    num_parameters: int  # logical parameters, tied weights counted once
    file_bytes: int
    weight_bytes: int  # read by one decode step
    bits_per_weight: float  # all bits of the file's tensors / logical parameters
    linear_bits_per_weight: float | None  # of all layers in decoder blocks, scales and zeros too
    kernels: tuple[str, ...]  # the kernels that its linear layers ran
    note: str | None = None  # where the weights come from, if a reader must know
    is_dummy: bool = False  # random weights: quality means nothing, and sizes are those in memory


@dataclass(frozen=True, slots=True)
class WindowedLayers:
    """The attention of all layers in which a token sees at most `window` tokens."""

    window: int
    flops_attention_per_token_per_context: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class CostModel:
    """Coefficients from which MFU and MBU follow, given the events of a run.

    The two of the attention are of the layers that see the whole context.
    """

    flops_per_token_linear: int  # all linear layers but the lm_head, per token
    flops_lm_head: int  # per sampled token
    flops_attention_per_token_per_context: int  # per token and per token of its context
    weight_bytes: int  # read once per engine step
    kv_bytes_per_token: int  # keys and values of one token
    windowed_layers: tuple[WindowedLayers, ...] = ()  # by window


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine can do at best, measured on it."""

    gemm_flops: dict[str, float]  # FLOP/s of a large matrix product, per dtype
    copy_bytes_per_s: float
    read_bytes_per_s: float
    measured_at: str  # ISO 8601, UTC
    num_threads: int
    device: str  # "cpu", "cuda"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where it ran. The host's name is deliberately not here."""

    device: str  # model name of the processor that ran the model
    cores: int
    memory_bytes: int
    os: str
    python: str
    torch: str
    transformers: str
    llmopt: str
    git_sha: str | None
    git_dirty: bool | None
    num_threads: int
    instruction_sets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """Which runtime served the model, and with which settings. `None`: there is no such thing.

    Fields with a default came later than the first files; a server's are of its last start.
    """

    name: str
    version: str
    settings: dict[str, object]
    command: str | None = None  # that started it, without secrets; directories left out
    probe: dict[str, object] | None = None  # what was found out about it by asking
    log: str | None = None  # where its output is, relative to the result file
    log_tail: str | None = None  # its end, where requests failed
    server_metrics: dict[str, float] | None = None  # its own counters after a run


@dataclass(frozen=True, slots=True)
class DeltaP:
    """Change in the probability of the right token, target - base: from -1 to 1, per token."""

    mean: float
    mean_ci: Interval
    rms: float
    p01: float
    p05: float
    p25: float
    p50: float
    p75: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class QualityBucket:
    """A part of the scored positions, such as those where the base was sure."""

    label: str
    num_tokens: int
    kld_mean: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class WindowSums:
    """Sums over the scored tokens of one window: two records of one text are paired by them."""

    num_tokens: int
    kld: float  # nats
    log_ratio: float  # log p_base - log p_target of the right token
    num_same_top1: int


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """What rounding alone costs: the base again, computed in 16 bits, on the same windows."""

    scheme: str  # "bf16"
    kld_mean: float
    kld_mean_ci: Interval
    ppl_ratio: float
    ppl_ratio_ci: Interval


VerdictLabel = Literal["indistinguishable", "above noise", "worse"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The loss in units of the noise: KL divergence of the target / that of the noise floor."""

    label: VerdictLabel
    times_noise: float
    times_noise_ci: Interval
    text: str  # one sentence with the evidence


@dataclass(frozen=True, slots=True)
class QualityRecord:
    """What quantization cost, paired per token with the base model on one text.

    `kld_*`: KL(base || target) of the next-token distributions, nats per token. `top1_agreement`:
    share of the positions where both have the same most likely token. `ppl_ratio`: perplexity of
    the target / perplexity of the base. Fields with a default came later than the first files.
    """

    base_name: str
    base_scheme: str
    text_name: str
    text_sha256: str
    protocol: str  # in words: how the windows were cut and scored
    window: int  # tokens of the longest window
    num_windows: int
    num_tokens: int  # scored positions
    kld_mean: float
    kld_mean_ci: Interval
    kld_median: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    top1_agreement_ci: Interval
    ppl: float
    base_ppl: float
    ppl_ratio: float
    ppl_ratio_ci: Interval
    confidence: float = 0.95
    protocol_name: str = "windows"  # "paper", "llama.cpp", "rolling"
    kld_p90: float | None = None
    kld_p999: float | None = None
    ppl_ci: Interval | None = None
    base_ppl_ci: Interval | None = None
    bits_per_byte: float | None = None
    base_bits_per_byte: float | None = None
    word_ppl: float | None = None  # where the protocol counts words
    base_word_ppl: float | None = None
    delta_p: DeltaP | None = None
    by_confidence: tuple[QualityBucket, ...] = ()  # by the base's top-1 probability
    by_position: tuple[QualityBucket, ...] = ()  # by the number of tokens before the scored one
    base_cache_error: float | None = None  # KLD that a compact cache of the base costs; None: none
    noise: NoiseFloor | None = None
    verdict: Verdict | None = None
    window_sums: tuple[WindowSums, ...] = ()  # in the order of the text
    source: str = "llmopt"  # whose log-probabilities: "llama.cpp", "transformers", "vllm"
    lower_bound: bool = False  # the KLD is of truncated distributions, so at least this


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """What a quantizer saw: `num_samples` windows of `sample_tokens` tokens of a text."""

    text_name: str
    text_sha256: str
    num_samples: int
    sample_tokens: int


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """How a checkpoint was quantized. `None`: not known, or there is no such thing.

    `seconds`: of this scheme alone; `shared_seconds`: of what all schemes that were made in the
    same pass share, such as statistics of the source. The peaks are of the whole process while it
    worked for this scheme; `host_before_bytes` is what it held before it began.
    """

    scheme: str  # "gptq-w4g64"
    format: str  # "gptq", "compressed-tensors", "gguf"
    engine: str  # "llmopt", or the quantizer of others that made it
    engine_version: str | None
    seconds: float | None
    shared_seconds: float | None
    host_peak_bytes: int | None  # memory that mapped files take is not in it
    host_before_bytes: int | None
    device_peak_bytes: int | None
    num_threads: int | None
    calibration: CalibrationFacts | None
    made_at: str | None  # ISO 8601, UTC


@dataclass(frozen=True, slots=True)
class ValidityCheck:
    """One condition under which the numbers of a cell mean what they say."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class CellResult:
    """One cell of a sweep: a target under a load. The content of one result file.

    A cell that failed has `error` set and `summary` None; what was known before the failure is
    kept. A cell without a load is of quality only: it has no runs, no summary and no error.
    """

    cell_id: str
    recipe_name: str
    recipe: dict[str, object]  # all of it, defaults filled in (recipe.schema.to_document)
    target: str  # name of the target in the recipe
    base_target: str  # name of the target that this one is compared with
    model: ModelFacts | None
    backend: BackendFacts
    load: LoadSpec | None
    environment: Environment
    ceilings: Ceilings | None
    cost: CostModel | None
    runs: tuple[RunRecord, ...]
    quality: QualityRecord | None
    validity: tuple[ValidityCheck, ...]
    summary: Summary | None
    error: str | None
    created_at: str  # ISO 8601, UTC
    quantization: QuantizationRecord | None = None  # of a target that a quantizer made
    price_per_hour: float | None = None  # of the machine
    profile: tuple[StepProfile, ...] = ()  # steps of the engine part by part, where asked for
    skipped: bool = False  # the error says why it cannot be measured, and nothing was tried
    stopping: StoppingRecord | None = None  # None: the number of runs was fixed
    search: SearchRecord | None = None  # of the load's rate; None: it was given
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class PartialCell:
    """What an interrupted sweep has of a cell so far.

    `fingerprint` stands for everything that must be the same for the runs to be continued.
    """

    fingerprint: str
    cell_id: str
    runs: tuple[RunRecord, ...]
    quality: QualityRecord | None
    backend: BackendFacts | None = None  # of the runs; None: llmopt's own
    search: SearchJournal | None = None
    schema_version: int = SCHEMA_VERSION
