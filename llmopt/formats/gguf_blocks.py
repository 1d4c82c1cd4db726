"""Weights as ggml stores them: the table of its types, and a matrix of raw blocks.

Knows nothing of files, names of tensors, or how the codes were chosen. The law: `dequantize` gives
bit for bit what the `gguf` package and llama.cpp make of the same bytes.

Format: enum ggml_type of ggml; the blocks are described in gguf_layouts.
"""

from dataclasses import dataclass
from typing import Self

import torch

from llmopt.errors import QuantizationError
from llmopt.formats.gguf_layouts import LAYOUTS, BlockLayout

_PLAIN_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One of ggml's tensor types: its name here ("q4_k"), its number in files, and its blocks."""

    name: str
    id: int
    block_elements: int
    block_bytes: int

    @property
    def layout(self) -> BlockLayout | None:
        """What its blocks look like; None for plain numbers (f32, f16, bf16)."""
        return LAYOUTS.get(self.name)

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype of plain numbers; None for quantized types."""
        return _PLAIN_DTYPES.get(self.name)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.block_bytes / self.block_elements

    def fits(self, columns: int) -> bool:
        """Whether rows of `columns` weights are whole blocks."""
        return columns % self.block_elements == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights; QuantizationError unless they are whole blocks."""
        if not self.fits(columns):
            raise QuantizationError(
                f"rows of {columns} weights are not whole {self.name} blocks of "
                f"{self.block_elements}",
                "Use a type with smaller blocks for this tensor, such as q8_0, or f16.",
            )
        return columns // self.block_elements * self.block_bytes


def _quantized(name: str, number: int) -> GgmlType:
    return GgmlType(name, number, LAYOUTS[name].elements, LAYOUTS[name].num_bytes)


GGML_TYPES: dict[str, GgmlType] = {
    ggml_type.name: ggml_type
    for ggml_type in (
        GgmlType("f32", 0, 1, 4),
        GgmlType("f16", 1, 1, 2),
        GgmlType("bf16", 30, 1, 2),
        _quantized("q4_0", 2),
        _quantized("q4_1", 3),
        _quantized("q5_0", 6),
        _quantized("q5_1", 7),
        _quantized("q8_0", 8),
        _quantized("q2_k", 10),
        _quantized("q3_k", 11),
        _quantized("q4_k", 12),
        _quantized("q5_k", 13),
        _quantized("q6_k", 14),
        _quantized("iq4_nl", 20),
        _quantized("iq4_xs", 23),
    )
}


def ggml_type(name: str) -> GgmlType:
    """The type of a name, in any case ("q4_k", "Q4_K"); QuantizationError if it is unknown."""
    found = GGML_TYPES.get(name.lower())
    if found is None:
        raise QuantizationError(
            f"{name!r} is not a ggml type that is written here",
            f"Choose one of {', '.join(GGML_TYPES)}.",
        )
    return found


@dataclass(frozen=True, slots=True)
class GgufWeight:
    """An [O, K] matrix in ggml's blocks, row by row (`StoredWeight`).

    blocks: uint8 [O, bytes per row]
    type:   what they are
    shape:  (O, K)
    """

    blocks: torch.Tensor
    type: GgmlType
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.shape
        assert self.blocks.dtype == torch.uint8, "blocks are bytes"
        assert self.blocks.shape == (rows, self.type.row_bytes(columns)), "rows are whole blocks"

    @property
    def label(self) -> str:
        """The type's name, such as "q4_k"."""
        return self.type.name

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight [O, K], computed in float32 as ggml does and rounded once to `dtype`."""
        layout = self.type.layout
        if layout is None:
            assert self.type.dtype is not None, "a type without blocks is a plain one"
            values = self.blocks.contiguous().view(self.type.dtype)
        else:
            fields = layout.unpack(self.blocks.reshape(-1, layout.num_bytes))
            values = layout.dequantize(fields)
        return values.reshape(self.shape).to(dtype)

    def to(self, device: torch.device) -> Self:
        """The same weight on another device."""
        return type(self)(self.blocks.to(device), self.type, self.shape)
