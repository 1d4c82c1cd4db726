"""What a quantization run is asked to do, and what it reports.

Data only; knows nothing of how it is done.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.formats.weights import FormatName
from llmopt.quantize.awq import AWQOptions
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.gptq import GPTQOptions

Method = Literal["rtn", "gptq", "awq", "awq+gptq"]


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """The method, what the weights become and how they are stored, and for all methods but "rtn"
    the calibration tokens.
    """

    method: Method
    spec: QuantSpec
    calibration: CalibrationData | None = None
    gptq: GPTQOptions = field(default_factory=GPTQOptions)
    awq: AWQOptions = field(default_factory=AWQOptions)
    format: FormatName = "gptq"

    @property
    def needs_calibration(self) -> bool:
        """Whether the method looks at data."""
        return self.method != "rtn"

    @property
    def uses_gptq(self) -> bool:
        """Whether columns are rounded by GPTQ."""
        return self.method in ("gptq", "awq+gptq")

    @property
    def uses_awq(self) -> bool:
        """Whether channels are scaled first."""
        return self.method in ("awq", "awq+gptq")


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """What happened to one module; the fields after `group_size` are None for "rtn".

    loss: mean squared error of an output over the calibration tokens
    relative_loss: the same as a share of the output's mean square
    damping: share of the mean Hessian diagonal that was added to it; None also where no damping
        was enough and the module was rounded to nearest
    dead_columns: inputs that were zero for every calibration token
    """

    name: str
    bits: int
    group_size: int | None
    loss: float | None = None
    relative_loss: float | None = None
    damping: float | None = None
    dead_columns: int | None = None


@dataclass(frozen=True, slots=True)
class QuantizedModule:
    """One module of the checkpoint, ready to be packed."""

    block: int
    weight: QuantizedWeight
    record: ModuleRecord


@dataclass(frozen=True, slots=True)
class ReplacedTensor:
    """A tensor of the checkpoint that is not quantized, but holds other values than the source."""

    name: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """The checkpoint that was written.

    bits_per_weight: bits on disk of the quantized modules (codes, scales, zero points, g_idx) per
        weight in them
    file_bytes: size of all safetensors files
    """

    out: Path
    seconds: float
    modules: tuple[ModuleRecord, ...]
    bits_per_weight: float
    file_bytes: int


# (block, num_blocks, module, loss), called after each module
ProgressCallback = Callable[[int, int, str, float | None], None]
