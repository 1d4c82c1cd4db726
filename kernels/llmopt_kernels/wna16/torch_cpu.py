"""The quantized matrix products that torch ships for CPUs, for bfloat16 activations.

`_weight_int4pack_mm_for_cpu` multiplies with 4-bit codes in groups of 32, 64, 128 or 256, as (code
- 8) * scale + zero; `_weight_int8pack_mm` with signed bytes and one scale per row. An 8-bit code
in groups is 16 * high + low, so it is the sum of two 4-bit products: nothing is lost, because a
power of two times a bfloat16 scale is exact.
"""

from dataclasses import dataclass
from functools import cache

import torch

INT4_GROUP_SIZES = (256, 128, 64, 32)
INT4_ROW_MULTIPLE = 16


@cache
def kernels_run() -> bool:
    """Whether this torch has the kernels and they run on this processor (tried once)."""
    x, codes = torch.ones(1, 32, dtype=torch.bfloat16), torch.ones(16, 32, dtype=torch.uint8)
    scales = torch.ones(16, 1)
    try:
        pack_int4(codes, scales, scales).matmul(x)
        pack_int8(codes, scales).matmul(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def kernel_group_size(columns_per_group: int) -> int | None:
    """The largest group of the int4 kernel that divides a group of this size, or None."""
    return next((size for size in INT4_GROUP_SIZES if columns_per_group % size == 0), None)


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A weight in the int4 kernel's own layout. scales_and_offsets: bfloat16 [K / group, O, 2]."""

    packed: torch.Tensor
    group_size: int
    scales_and_offsets: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.packed.nbytes + self.scales_and_offsets.nbytes

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 [T, K] -> [T, O]."""
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.packed, self.group_size, self.scales_and_offsets
        )
        return product


def pack_int4(codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> Int4Weight:
    """Lay out (code - 8) * scale + offset. codes: uint8 [O, K] below 16; scales, offsets: [O, G].

    O must be a multiple of 16 and K / G of 32 (see `kernel_group_size`).
    """
    columns_per_group = codes.shape[1] // scales.shape[1]
    group_size = kernel_group_size(columns_per_group)
    assert group_size is not None, "the group size must be a multiple of 32"
    repeats = columns_per_group // group_size
    per_group = torch.stack([scales, offsets], dim=-1).repeat_interleave(repeats, dim=1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    layout = per_group.transpose(0, 1).to(torch.bfloat16).contiguous()  # [K / group, O, 2]
    return Int4Weight(packed, group_size, layout)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """Signed bytes [O, K] with one bfloat16 scale per row."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes + self.scales.nbytes

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 [T, K] -> [T, O]."""
        product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x, self.values, self.scales)
        return product


def pack_int8(codes: torch.Tensor, scales: torch.Tensor) -> Int8Weight:
    """Lay out (code - 128) * scale. codes: uint8 [O, K]; scales: [O, 1]."""
    values = (codes.to(torch.int16) - 128).to(torch.int8).contiguous()
    return Int8Weight(values, scales.squeeze(1).to(torch.bfloat16).contiguous())


@dataclass(frozen=True, slots=True)
class SplitInt8Weight:
    """8-bit codes in groups as two 4-bit weights: high and low half of each code."""

    high: Int4Weight
    low: Int4Weight

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.high.num_bytes + self.low.num_bytes

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 [T, K] -> [T, O]."""
        return self.high.matmul(x).add_(self.low.matmul(x))


def pack_split_int8(codes: torch.Tensor, scales: torch.Tensor) -> SplitInt8Weight:
    """Lay out (code - 128) * scale. codes: uint8 [O, K]; scales: [O, G].

    16 * (high - 8) * scale + ((low - 8) * scale + 8 * scale) = (16 * high + low - 128) * scale.
    """
    scales = scales.float()
    high = pack_int4(codes >> 4, 16 * scales, torch.zeros_like(scales))
    low = pack_int4(codes & 15, scales, 8 * scales)
    return SplitInt8Weight(high, low)
