"""Matrix product with weights from a codebook, by dequantizing first.

y[t, o] = sum_k x[t, k] * table[code[o, k]] * absmax[b]  with b = (o * K + k) // block_size: blocks
are runs of the row-major flattened matrix (QLoRA, arXiv 2305.14314; bitsandbytes). In double
quantization the scales are codes of 8 bits of a second table, less their mean:

absmax[b] = nested_table[nested_code[b]] * nested_absmax[b // nested_block_size] + offset
"""

import torch


def nf4_reference(
    x: torch.Tensor,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    table: torch.Tensor,
    block_size: int = 64,
) -> torch.Tensor:
    """The product in float64. x: [T, K]; codes: uint8 [O, K]; absmax: [blocks]; table: [16]."""
    block_of = torch.arange(codes.numel(), device=codes.device) // block_size
    scales = absmax.double()[block_of].view(codes.shape)
    weight = table.double()[codes.int()] * scales
    return (x.double() @ weight.T).to(x.dtype)


def nested_absmax_reference(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    table: torch.Tensor,
    offset: float,
    block_size: int = 256,
) -> torch.Tensor:
    """Double-quantized scales [blocks], float64. codes: uint8 [blocks]; table: [256]."""
    block_of = torch.arange(len(codes), device=codes.device) // block_size
    return table.double()[codes.int()] * absmax.double()[block_of] + offset
