"""The in-memory forms of quantized weights, which every checkpoint format is read into and
written from: what they have in common, and uniform groups, the most usual one.

Knows nothing of files, kernels or how the codes were chosen. The law: `dequantize` is the
definition of the weight, and every kernel and every format is held against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from llmopt.errors import QuantizationError

SUPPORTED_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """Uniform quantization of a matrix in groups along the input dimension.

    `group_size` None means one group per output row ("per channel"). Symmetric weights have the
    zero point 2^(bits-1) in every group.
    """

    bits: int
    group_size: int | None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS:
            raise QuantizationError(
                f"{self.bits}-bit weights are not supported",
                f"Choose one of {', '.join(map(str, SUPPORTED_BITS))} bits.",
            )
        if self.group_size is not None and self.group_size < 1:
            raise QuantizationError(
                f"a group size of {self.group_size} makes no sense",
                "Give a positive number of weights, or none for one group per output channel.",
            )

    @property
    def levels(self) -> int:
        """Number of codes: 2^bits."""
        return 1 << self.bits

    @property
    def midpoint(self) -> int:
        """The zero point of a symmetric group: 2^(bits-1)."""
        return 1 << (self.bits - 1)

    def columns_per_group(self, in_features: int) -> int:
        """Weights of one row that share a scale."""
        return self.group_size or in_features

    def num_groups(self, in_features: int) -> int:
        """Groups per output row; raises QuantizationError unless they divide `in_features`."""
        columns = self.columns_per_group(in_features)
        if in_features % columns:
            raise QuantizationError(
                f"rows of {in_features} weights do not divide into groups of {columns}",
                "Choose a group size that divides the row length.",
            )
        return in_features // columns

    def label(self, method: str) -> str:
        """The scheme's name, such as `gptq-w4g64`, `gptq-w8` (per channel) or `rtn-w4g64-asym`."""
        group = f"g{self.group_size}" if self.group_size else ""
        return f"{method}-w{self.bits}{group}{'' if self.symmetric else '-asym'}"


class StoredWeight(Protocol):
    """What every quantized weight can do. The law: `dequantize` is the definition of the weight."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, K)."""

    @property
    def label(self) -> str:
        """What it is stored as, in short, such as "w4", "nf4" or "q4_k"."""

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight [O, K], computed in float32 and rounded once to `dtype`."""

    def to(self, device: torch.device) -> Self:
        """The same weight on another device."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """An [O, K] matrix as integer codes with one scale (and zero point) per row and group.

    codes:  uint8 [O, K], 0 .. 2^bits - 1
    scales: [O, G], float16, bfloat16 or float32 as stored
    zeros:  uint8 [O, G], or None for a symmetric spec
    g_idx:  int32 [K], the group of each column; None: column k is in group k // group_size
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    g_idx: torch.Tensor | None
    spec: QuantSpec

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape
        groups = self.spec.num_groups(columns)
        assert self.codes.dtype == torch.uint8, "codes are bytes"
        assert self.scales.shape == (rows, groups), "one scale per row and group"
        assert (self.zeros is None) == self.spec.symmetric, "zero points exist iff asymmetric"
        assert self.zeros is None or self.zeros.shape == (rows, groups), "one zero per scale"

    @property
    def shape(self) -> tuple[int, int]:
        """(O, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def label(self) -> str:
        """Such as "w4"."""
        return f"w{self.spec.bits}"

    def zero_points(self) -> torch.Tensor:
        """The zero points, uint8 [O, G], also where the spec implies them."""
        if self.zeros is None:
            return torch.full_like(self.scales, self.spec.midpoint, dtype=torch.uint8)
        return self.zeros

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight [O, K]: (code - zero) * scale, computed in float32 and rounded once to
        `dtype`.
        """
        rows, columns = self.shape
        zeros: torch.Tensor | float = float(self.spec.midpoint)
        scales = self.scales.float()
        if self.g_idx is not None:
            group_of = self.g_idx.long()
            scales = scales[:, group_of]
            if self.zeros is not None:
                zeros = self.zeros.float()[:, group_of]
            return ((self.codes.float() - zeros) * scales).to(dtype)
        grouped = self.codes.float().view(rows, -1, self.spec.columns_per_group(columns))
        if self.zeros is not None:
            zeros = self.zeros.float().unsqueeze(-1)
        return ((grouped - zeros) * scales.unsqueeze(-1)).view(rows, columns).to(dtype)

    def column_order(self) -> torch.Tensor | None:
        """The stable permutation of columns [K] that sorts them by group, or None if they are
        sorted already.
        """
        if self.g_idx is None:
            return None
        order = torch.argsort(self.g_idx, stable=True)
        return None if torch.equal(order, torch.arange(len(order), device=order.device)) else order

    def to(self, device: torch.device) -> "QuantizedWeight":
        """The same weight on another device."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device)

        codes, scales = self.codes.to(device), self.scales.to(device)
        return QuantizedWeight(codes, scales, move(self.zeros), move(self.g_idx), self.spec)


def can_concatenate(weights: Sequence[QuantizedWeight]) -> bool:
    """Whether these weights can become one matrix: same spec, same columns in the same groups."""
    first = weights[0]

    def same_groups(other: QuantizedWeight) -> bool:
        if first.g_idx is None or other.g_idx is None:
            return first.g_idx is other.g_idx
        return torch.equal(first.g_idx, other.g_idx)

    return all(
        w.spec == first.spec and w.shape[1] == first.shape[1] and same_groups(w)
        for w in weights[1:]
    )


def concatenate_rows(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Stack matrices that share their input along the output dimension (q, k, v; gate, up)."""
    assert can_concatenate(weights), "only weights of one spec and one grouping stack"
    first = weights[0]
    return QuantizedWeight(
        codes=torch.cat([w.codes for w in weights]),
        scales=torch.cat([w.scales for w in weights]),
        zeros=None
        if first.zeros is None
        else torch.cat([w.zeros for w in weights if w.zeros is not None]),
        g_idx=first.g_idx,
        spec=first.spec,
    )
