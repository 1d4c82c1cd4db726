"""Matrix products with weights that are indices into a table of 16 values: NF4, FP4, IQ4_NL."""

import torch
import torch.nn.functional as F

from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.matmul.packed import PackedWeight, dequantize


def nf4(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: bfloat16 or float16 [T, K]; bias: [O] -> [T, O]. The version for the device of x."""
    if uses_triton(x):
        from llmopt_kernels.nf4.triton import nf4_triton

        return nf4_triton(x, weight, bias)
    return F.linear(x, dequantize(weight).to(x.dtype), bias)


__all__ = ["nf4"]
