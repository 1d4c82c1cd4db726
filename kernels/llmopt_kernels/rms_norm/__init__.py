"""RMSNorm, alone and with its neighbours: the version for the device at hand.

`reference.py` has the definitions.
"""

import torch
import torch.nn.functional as F

from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.rms_norm.reference import QUANTIZERS


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of the last dimension. x: [..., C]; weight: [C] -> [..., C] in the dtype of x."""
    if uses_triton(x):
        from llmopt_kernels.rms_norm.triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    if weight.dtype == x.dtype:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return F.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, eps).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual: [T, C] -> RMSNorm of their sum, and the sum, [T, C] each."""
    if uses_triton(x):
        from llmopt_kernels.rms_norm.triton import add_rms_norm_triton

        return add_rms_norm_triton(x, residual, weight, eps)
    total = residual + x
    return rms_norm(total, weight, eps), total


def rms_norm_quantize(
    x: torch.Tensor, weight: torch.Tensor, eps: float, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [T, C]; form: int8 or fp8 -> codes [T, C] and scales float32 [T, 1] of RMSNorm(x)."""
    if uses_triton(x):
        from llmopt_kernels.rms_norm.triton import rms_norm_quantize_triton

        return rms_norm_quantize_triton(x, weight, eps, form)
    return QUANTIZERS[form](rms_norm(x, weight, eps))


def add_rms_norm_quantize(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, form: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, residual: [T, C] -> codes and scales of the RMSNorm of their sum, and the sum."""
    if uses_triton(x):
        from llmopt_kernels.rms_norm.triton import add_rms_norm_quantize_triton

        return add_rms_norm_quantize_triton(x, residual, weight, eps, form)
    out, total = add_rms_norm(x, residual, weight, eps)
    codes, scales = QUANTIZERS[form](out)
    return codes, scales, total


__all__ = ["add_rms_norm", "add_rms_norm_quantize", "rms_norm", "rms_norm_quantize"]
