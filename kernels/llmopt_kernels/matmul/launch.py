"""Launches of the kernels in `triton.py`: from tensors to grids.

Knows nothing of schemes. The law: nothing here waits for the GPU, and what is launched depends on
shapes alone, so that it can be captured in a CUDA graph.
"""

from typing import Any

import torch

from llmopt_kernels.matmul.packed import BLOCK, PackedWeight
from llmopt_kernels.matmul.triton import (
    dequantize_kernel,
    packed_matmul_kernel,
    sum_parts_kernel,
)
from llmopt_kernels.tuning import Config

_ELEMENTS_PER_PROGRAM = 1024


def packed_matmul(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, config: Config
) -> torch.Tensor:
    """x [T, K] (bfloat16 or float16) times a packed weight, plus bias [O]: -> [T, O]."""
    x = x.contiguous()
    num_tokens, (num_rows, num_columns) = len(x), weight.shape
    out = torch.empty(num_tokens, num_rows, dtype=x.dtype, device=x.device)
    parts = config["SPLIT_K"]
    target = parts_like(out, parts, torch.float32) if parts > 1 else out
    row_tiles = -(-num_rows // config["BLOCK_O"])
    token_tiles = -(-num_tokens // config["BLOCK_T"])
    packed_matmul_kernel[(row_tiles * token_tiles, parts)](
        x,
        *stored_tensors(weight),
        bias if parts == 1 else None,
        target,
        num_tokens,
        num_rows,
        num_columns,
        **layout_constants(weight),
        **config,
    )
    if parts > 1:
        sum_parts(target, out, bias)
    return out


def dequantized(weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [O, K] in a 16-bit dtype, computed by the GPU."""
    num_rows, num_columns = weight.shape
    out = torch.empty(weight.shape, dtype=dtype, device=weight.words.device)
    block_o = 64
    dequantize_kernel[(-(-num_rows // block_o), -(-num_columns // BLOCK))](
        *stored_tensors(weight),
        out,
        num_rows,
        num_columns,
        **layout_constants(weight),
        BLOCK_O=block_o,
        BLOCK_K=BLOCK,
    )
    return out


def parts_like(out: torch.Tensor, parts: int, dtype: torch.dtype) -> torch.Tensor:
    """Room for the parts of a product whose K is split: [parts, T, O]."""
    return torch.empty(parts, *out.shape, dtype=dtype, device=out.device)


def sum_parts(
    parts: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """out [T, O] = the sum of parts [S, T, O] in their order, scaled, plus bias [O].

    scales: float32 of the tokens [T] and of the rows [O].
    """
    token_scales, row_scales = scales or (None, None)
    sum_parts_kernel[(-(-out.numel() // _ELEMENTS_PER_PROGRAM),)](
        parts,
        token_scales,
        row_scales,
        bias,
        out,
        out.numel(),
        out.shape[1],
        SPLIT_K=len(parts),
        BLOCK=_ELEMENTS_PER_PROGRAM,
    )


def stored_tensors(weight: PackedWeight) -> tuple[torch.Tensor | None, ...]:
    """The tensors of a weight in the order of the kernels' arguments."""
    return weight.words, weight.scales, weight.zeros, weight.offsets, weight.table


def layout_constants(weight: PackedWeight) -> dict[str, Any]:
    """What the kernels know about a weight when they are compiled."""
    one_group = weight.group_size == weight.shape[1]
    step = BLOCK if one_group else min(weight.group_size & -weight.group_size, BLOCK)
    return {
        "ZERO": weight.zero,
        "BITS": weight.bits,
        "GROUP_SIZE": 0 if one_group else weight.group_size,
        "STEP": step,
    }
