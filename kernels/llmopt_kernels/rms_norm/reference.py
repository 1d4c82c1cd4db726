"""RMSNorm (Zhang and Sennrich, 2019): y = x / sqrt(mean(x^2) + eps) * weight, in float32.

Fused with what stands beside it in a decoder block: the residual sum before it, rounded to the
dtype of x, and behind it the rounding of tokens that a W8A8 or FP8 product begins with.
"""

import torch

from llmopt_kernels.fp8 import reference as fp8
from llmopt_kernels.w8a8 import reference as w8a8

QUANTIZERS = {"int8": w8a8.quantize_tokens, "fp8": fp8.quantize_tokens}


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalize the last dimension. x: [..., C]; weight: [C]; returns [..., C] in x's dtype."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual: [T, C] -> RMSNorm of their sum, and the sum, [T, C] each."""
    total = (x.float() + residual.float()).to(x.dtype)
    return rms_norm_reference(total, weight, eps), total


def rms_norm_quantize_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [T, C]; form: int8 or fp8 -> codes [T, C] and scales float32 [T, 1] of RMSNorm(x)."""
    return QUANTIZERS[form](rms_norm_reference(x, weight, eps))


def add_rms_norm_quantize_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, form: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, residual: [T, C] -> codes, scales and the sum: see the parts above."""
    out, total = add_rms_norm_reference(x, residual, weight, eps)
    codes, scales = QUANTIZERS[form](out)
    return codes, scales, total
