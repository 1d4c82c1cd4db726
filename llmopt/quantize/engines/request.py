"""What an engine of others is asked to do, and what it reports.

Data only; knows nothing of any engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.calibration import CalibrationData

EngineMethod = Literal["gptq", "awq", "nf4", "fp4", "int8", "w8a8", "fp8", "gguf"]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One model, one method, one output.

    model: a directory with config.json and safetensors; for "gguf" a GGUF file in float16 or
        float32
    out: the directory to create; for "gguf" the file
    spec: for "gptq" and "awq"; the other methods say by their name what weights become
    calibration: the same windows that our own methods see, for methods that look at data
    double_quant: for "nf4" and "fp4", whether their scales are quantized as well
    gguf_type: for "gguf", such as "q4_k_m"
    importance: for "gguf", the mean squared input of each column, float32 [K], by the name of the
        tensor in the GGUF file
    device: "auto" takes a CUDA device where the engine's own torch finds one
    """

    model: Path
    out: Path
    method: EngineMethod
    spec: QuantSpec | None = None
    calibration: CalibrationData | None = None
    double_quant: bool = False
    gguf_type: str | None = None
    importance: Mapping[str, Tensor] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def scheme(self) -> str:
        """A name such as `gptq-w4g64`, `nf4` or `gguf-q4_k_m`."""
        if self.spec is not None:
            return self.spec.label(self.method)
        if self.gguf_type is not None:
            return f"{self.method}-{self.gguf_type}"
        return f"{self.method}-dq" if self.double_quant else self.method


@dataclass(frozen=True, slots=True)
class EngineSummary:
    """What was made.

    versions: of the engine and of what it computes with, by distribution
    seconds: of the whole run, with loading
    """

    out: Path
    engine: str
    scheme: str
    versions: dict[str, str]
    seconds: float
    file_bytes: int
