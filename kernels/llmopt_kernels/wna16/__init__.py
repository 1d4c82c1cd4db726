"""Matrix products with integer weights (2 to 8 bits) and 16-bit floating-point activations."""

import torch
import torch.nn.functional as F

from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.matmul.packed import PackedWeight, dequantize


def wna16(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: bfloat16 or float16 [T, K]; bias: [O] -> [T, O]. The version for the device of x."""
    if uses_triton(x):
        from llmopt_kernels.wna16.triton import wna16_triton

        return wna16_triton(x, weight, bias)
    return F.linear(x, dequantize(weight).to(x.dtype), bias)


__all__ = ["wna16"]
