"""8-bit floating-point weights (e4m3, finite values only) with one scale per output row.

The encoding is torch.float8_e4m3fn: 4 exponent and 3 mantissa bits, largest value 448, no infinity
(Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433). Knows nothing of files or
of how the values were chosen. The law: `dequantize` is value times scale, computed in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LARGEST_E4M3 = 448.0


@dataclass(frozen=True, slots=True)
class Fp8Spec:
    """e4m3 weights; `per_row` is false where the whole matrix shares one scale."""

    per_row: bool = True

    def label(self, method: str) -> str:
        """The scheme's name, such as "rtn-fp8a16": activations keep their 16 bits."""
        return f"{method}-fp8a16"


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """An [O, K] matrix of e4m3 values and their scales.

    values: float8_e4m3fn [O, K]
    scales: [O, 1], or [1, 1] for one scale of the whole matrix; float32 or a 16-bit type as stored
    """

    values: torch.Tensor
    scales: torch.Tensor
    spec: Fp8Spec = Fp8Spec()

    def __post_init__(self) -> None:
        rows = len(self.values) if self.spec.per_row else 1
        assert self.values.dtype == torch.float8_e4m3fn, "values are e4m3"
        assert self.scales.shape == (rows, 1), "one scale per row, or one of all"

    @property
    def shape(self) -> tuple[int, int]:
        """(O, K)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def label(self) -> str:
        """What it is stored as."""
        return "fp8"

    def row_scales(self) -> torch.Tensor:
        """The scales as float32 [O, 1], also where all rows share one."""
        return self.scales.float().expand(len(self.values), 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight [O, K]: value * scale, computed in float32 and rounded once to `dtype`."""
        return (self.values.float() * self.scales.float()).to(dtype)

    def to(self, device: torch.device) -> "Fp8Weight":
        """The same weight on another device."""
        return Fp8Weight(self.values.to(device), self.scales.to(device), self.spec)


def concatenate_fp8(weights: Sequence[Fp8Weight]) -> Fp8Weight:
    """Stack matrices that share their input along the output dimension; each row gets its scale."""
    values = torch.cat([weight.values for weight in weights])
    return Fp8Weight(values, torch.cat([weight.row_scales() for weight in weights]))
