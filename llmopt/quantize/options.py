"""What a quantization run is asked to do, and what it reports.

Data only; knows nothing of how it is done.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec, StoredWeight
from llmopt.formats.weights import FormatName
from llmopt.hardware.memory import PeakMemory
from llmopt.quantize.awq import AWQOptions
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.gptq import GPTQOptions
from llmopt.quantize.override import Override
from llmopt.quantize.scheme import Scheme, UniformMethod

FileFormat = Literal[FormatName, "bitsandbytes", "gguf"]


@dataclass(frozen=True, slots=True)
class Job:
    """One checkpoint to make: all that decides its contents besides source and calibration.

    propagate: calibrate on what the quantized blocks before put out, not on the source's
    lm_head: quantize the output head too, where it is not tied to the embedding
    gguf_pre: llama.cpp's name of the pre-tokenizer, where it cannot be told from the tokenizer
    """

    scheme: Scheme
    format: FileFormat
    gptq: GPTQOptions = field(default_factory=GPTQOptions)
    awq: AWQOptions = field(default_factory=AWQOptions)
    propagate: bool = True
    overrides: tuple[Override, ...] = ()
    gguf_pre: str | None = None
    lm_head: bool = False

    def __post_init__(self) -> None:
        if self.scheme.method == "qronos" and not self.propagate:
            raise QuantizationError(
                "qronos makes up for the errors of the blocks before, and cannot do without them",
                "Leave --no-propagate out, or choose gptq.",
            )

    @property
    def label(self) -> str:
        """The name of its scheme."""
        return self.scheme.label

    @property
    def has_own_prefix(self) -> bool:
        """Whether it needs a forward pass of its own."""
        return self.propagate and (self.scheme.uses_gptq or self.scheme.uses_awq)


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """One job of a uniform method, and for all methods but "rtn" the calibration tokens."""

    method: UniformMethod
    spec: QuantSpec
    calibration: CalibrationData | None = None
    gptq: GPTQOptions = field(default_factory=GPTQOptions)
    awq: AWQOptions = field(default_factory=AWQOptions)
    format: FormatName = "gptq"
    propagate: bool = True
    overrides: tuple[Override, ...] = ()

    @property
    def job(self) -> Job:
        """The job without its data."""
        scheme = Scheme(self.method, self.spec)
        return Job(scheme, self.format, self.gptq, self.awq, self.propagate, self.overrides)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How jobs are run; nothing here changes what they make, but for the calibration tokens and,
    within rounding, the device.

    cache: directory for statistics of the source's layers that later runs can use, or None
    restart: begin anew where the journal of another run lies
    """

    calibration: CalibrationData | None = None
    device: str = "cpu"
    cache: Path | None = None
    restart: bool = False


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """What happened to one module; losses are None for methods that look at no data.

    bits: of a code, or of a weight in all where blocks have several kinds of numbers (GGUF)
    stored_as: such as "w4", "nf4" or "q4_k"
    loss: mean squared error of an output over the calibration tokens; for qronos against the
        output that the corrected weight would give
    relative_loss: the same as a share of the output's mean square
    damping: share of the mean Hessian diagonal that was added to it; None also where no damping
        was enough and the module was rounded to nearest
    dead_columns: inputs that were zero for every calibration token
    """

    name: str
    bits: float
    group_size: int | None
    stored_as: str
    loss: float | None = None
    relative_loss: float | None = None
    damping: float | None = None
    dead_columns: int | None = None


@dataclass(frozen=True, slots=True)
class QuantizedModule:
    """One module of the checkpoint, ready to be packed."""

    weight: StoredWeight
    record: ModuleRecord


@dataclass(frozen=True, slots=True)
class ReplacedTensor:
    """A tensor of the checkpoint that is not quantized, but holds other values than the source."""

    name: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """The checkpoint that was written.

    seconds: of this job alone: quantizing and writing; shared_seconds: of what all jobs of the run
        share, such as statistics of the source
    bits_per_weight: bits on disk of the quantized modules (codes, scales, zero points, g_idx) per
        weight in them
    file_bytes: size of all weight files
    resumed_blocks: blocks that an earlier, interrupted run had finished
    """

    out: Path
    scheme: str
    seconds: float
    shared_seconds: float
    modules: tuple[ModuleRecord, ...]
    bits_per_weight: float
    file_bytes: int
    peak_memory: PeakMemory
    resumed_blocks: int


@dataclass(frozen=True, slots=True)
class ModuleFinished:
    """Progress: `module` of block `block` of `num_blocks` is done for the job `scheme`."""

    scheme: str
    block: int
    num_blocks: int
    record: ModuleRecord


class QuantizeObserver(Protocol):
    """Hears of progress."""

    def stage_started(self, stage: str) -> None:
        """Something that takes a while begins, such as "hash the source"."""

    def blocks_started(self, done: int, total: int) -> None:
        """`total` modules are to be quantized, `done` of them were by an earlier run."""

    def module_finished(self, event: ModuleFinished) -> None:
        """A module was quantized."""

    def block_finished(self, block: int, num_blocks: int) -> None:
        """A block was quantized for every job, and is on the disk."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class SilentObserver:
    """Ignores everything."""

    def stage_started(self, stage: str) -> None:
        """Ignore it."""

    def blocks_started(self, done: int, total: int) -> None:
        """Ignore it."""

    def module_finished(self, event: ModuleFinished) -> None:
        """Ignore it."""

    def block_finished(self, block: int, num_blocks: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
