"""Rounding to the 16 values of NF4 or FP4, block by block: no calibration data, no search.

Pure maths on one weight matrix; knows nothing of how the result is stored. The law: the same codes
and scales as bitsandbytes' `quantize_4bit`, because a file of ours and one of theirs are to be the
same model.
"""

import torch
from torch import Tensor

from llmopt.errors import QuantizationError
from llmopt.formats.codebook import (
    BLOCK_SIZES,
    CodebookKind,
    CodebookWeight,
    NestedAbsmax,
    codebook,
    split_blocks,
)
from llmopt.quantize.rounding import check_finite
from llmopt.quantize.threads import single_thread

NESTED_BLOCK_SIZE = 256
_SMALLEST_ABSMAX = 1e-38  # its reciprocal is finite
_CHUNK_ELEMENTS = 1 << 17  # the working set of one chunk stays in the second-level cache


@single_thread()
def quantize_codebook(
    weight: Tensor,
    kind: CodebookKind,
    *,
    block_size: int = 64,
    double_quant: bool = False,
    name: str = "the weight",
) -> CodebookWeight:
    """Quantize `weight` [O, K] to the nearest codes; `name` is for the error message.

    A block of `block_size` consecutive weights is scaled by its largest magnitude (QLoRA, arXiv
    2305.14314). A weight halfway between two values takes the lower one. `double_quant` stores
    these scales in 8 bits. Raises `QuantizationError` for a NaN, an infinity or a block size that
    bitsandbytes does not have.
    """
    check_finite(name, weight)
    if block_size not in BLOCK_SIZES:
        raise QuantizationError(
            f"{kind} blocks of {block_size} weights are not supported",
            f"Choose one of {', '.join(map(str, BLOCK_SIZES))}.",
        )
    codes, absmax = _quantize_blocks(weight, codebook(kind, weight.device), block_size)
    stored = quantize_absmax(absmax) if double_quant else absmax
    return CodebookWeight(codes.view(weight.shape), stored, kind, block_size)


@single_thread()
def quantize_absmax(absmax: Tensor) -> NestedAbsmax:
    """Quantize block scales, float32 [B], to 8 bits around their mean (QLoRA, section 3)."""
    table = dynamic_table(absmax.device)
    offset = absmax.mean()
    codes, nested = _quantize_blocks(absmax - offset, table, NESTED_BLOCK_SIZE)
    return NestedAbsmax(codes, nested, table, offset.item(), NESTED_BLOCK_SIZE)


def dynamic_table(device: torch.device | None = None) -> Tensor:
    """The 256 values of the dynamic 8-bit data type, ascending (arXiv 1511.04561, 2110.02861).

    Decade d below 1 is cut into 2^(6 - d) equal parts, whose centres are the magnitudes: few for
    small numbers, many for large ones. With both signs, 0 and 1.
    """
    magnitudes = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2 ** (6 - decade) + 1)
        magnitudes.append((edges[:-1] + edges[1:]) / 2 * 10.0**-decade)
    positive = torch.cat(magnitudes)
    table = torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values
    return table.to(device)


def _quantize_blocks(values: Tensor, table: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes, uint8 [numel], and the largest magnitude of each block, float32 [B]."""
    order = torch.argsort(table, stable=True)
    ascending = table[order]
    midpoints = (ascending[:-1] + ascending[1:]) / 2
    code_of = order.to(torch.uint8)
    flat = values.flatten()
    codes, absmax = [], []
    for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
        chunk = flat[start : start + _CHUNK_ELEMENTS]
        blocks = split_blocks(chunk.float(), block_size)
        largest = blocks.abs().amax(dim=1)
        reciprocal = 1.0 / largest.clamp(min=_SMALLEST_ABSMAX)
        nearest = torch.bucketize(blocks * reciprocal.unsqueeze(1), midpoints, out_int32=True)
        codes.append(code_of[nearest].flatten()[: chunk.numel()])
        absmax.append(largest)
    return torch.cat(codes), torch.cat(absmax)
