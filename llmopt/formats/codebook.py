"""A matrix as 4-bit indices into a table of 16 values, one scale per block: NF4 and FP4.

The scheme of QLoRA (arXiv 2305.14314) as bitsandbytes stores it. Blocks are runs of the row-major
flattened matrix: where the row length is no multiple of the block size they cross rows, and the
last one may be short. Knows nothing of files or of how the codes were chosen. The law: `dequantize`
gives bit for bit what bitsandbytes' `dequantize_4bit` gives (except that bitsandbytes 0.50 takes
wrong scales on CPUs with AVX-512 where a row is not a whole number of blocks).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

CodebookKind = Literal["nf4", "fp4"]
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # those that bitsandbytes takes

# The quantiles of a normal distribution, QLoRA's appendix E.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# In units of 1/12, in the order of the bit patterns; bit 3 is the sign.
_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)


def codebook(kind: CodebookKind, device: torch.device | None = None) -> torch.Tensor:
    """The values of the 16 codes within [-1, 1], float32 [16]. FP4's are not sorted."""
    if kind == "nf4":
        return torch.tensor(_NF4, device=device)
    magnitudes = torch.tensor(_FP4_MAGNITUDES, device=device) / 12.0
    return torch.cat([magnitudes, 0.0 - magnitudes])


def split_blocks(values: torch.Tensor, block_size: int) -> torch.Tensor:
    """The flattened values in blocks [B, block_size], the last one filled up with zeros."""
    flat = values.flatten()
    return F.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)


@dataclass(frozen=True, slots=True)
class NestedAbsmax:
    """Block scales that are quantized themselves ("double quantization", QLoRA section 3).

    codes: uint8 [B], indices into `table`
    absmax: float32 [ceil(B / block_size)], one scale per block of codes
    table: float32 [256]
    offset: the mean of the scales, a float32 value; it was subtracted before they were quantized
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    table: torch.Tensor
    offset: float
    block_size: int

    def __post_init__(self) -> None:
        assert self.codes.dtype == torch.uint8, "codes are bytes"
        assert len(self.absmax) == -(-len(self.codes) // self.block_size), "one scale per block"

    def dequantize(self) -> torch.Tensor:
        """The scales of the weight's blocks, float32 [B]."""
        blocks = split_blocks(self.table[self.codes.int()], self.block_size)
        return (blocks * self.absmax.unsqueeze(1)).flatten()[: len(self.codes)] + self.offset

    def to(self, device: torch.device) -> "NestedAbsmax":
        """The same scales on another device."""
        return NestedAbsmax(
            self.codes.to(device),
            self.absmax.to(device),
            self.table.to(device),
            self.offset,
            self.block_size,
        )


@dataclass(frozen=True, slots=True)
class CodebookWeight:
    """An [O, K] matrix as codes of a codebook with one scale per block (`StoredWeight`).

    codes: uint8 [O, K], 0 .. 15
    stored_absmax: float32 [B] as stored, or its double-quantized form
    """

    codes: torch.Tensor
    stored_absmax: torch.Tensor | NestedAbsmax
    kind: CodebookKind
    block_size: int = 64

    def __post_init__(self) -> None:
        assert self.codes.dtype == torch.uint8, "codes are bytes"
        assert self.block_size in BLOCK_SIZES, "a block size that bitsandbytes takes"
        stored = self.stored_absmax
        count = len(stored.codes) if isinstance(stored, NestedAbsmax) else len(stored)
        assert count == -(-self.codes.numel() // self.block_size), "one scale per block"

    @property
    def shape(self) -> tuple[int, int]:
        """(O, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def label(self) -> str:
        """Such as "nf4"."""
        return self.kind

    @property
    def absmax(self) -> torch.Tensor:
        """The scale of each block as it is used, float32 [B]."""
        stored = self.stored_absmax
        return stored.dequantize() if isinstance(stored, NestedAbsmax) else stored

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight [O, K]: value of the code * absmax of its block, multiplied in float32 and
        rounded once to `dtype`.
        """
        values = codebook(self.kind, self.codes.device)[self.codes.int()]
        scaled = split_blocks(values, self.block_size) * self.absmax.unsqueeze(1)
        return scaled.flatten()[: self.codes.numel()].view(self.shape).to(dtype)

    def to(self, device: torch.device) -> "CodebookWeight":
        """The same weight on another device."""
        return CodebookWeight(
            self.codes.to(device), self.stored_absmax.to(device), self.kind, self.block_size
        )
