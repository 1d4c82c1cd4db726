"""The definition of the FP8 product: round each token to e4m3, multiply, scale.

s[t] = max_k |x[t, k]| / 448        a[t, k] = e4m3(x[t, k] / s[t])
y[t, o] = s[t] * w[o] * sum_k a[t, k] * b[o, k]

Dynamic per-token activations as llm-compressor's FP8_DYNAMIC means them and vLLM computes them.
"""

import torch

LARGEST_E4M3 = 448.0


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row of x [T, K]: -> values e4m3 [T, K], scales float32 [T, 1].

    A row of zeros has scale 1.
    """
    values = x.float()
    scales = values.abs().amax(dim=1, keepdim=True) / LARGEST_E4M3
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    quotients = (values / scales).clamp_(-LARGEST_E4M3, LARGEST_E4M3)
    return quotients.to(torch.float8_e4m3fn), scales


def fp8_reference(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x: [T, K]; weight: e4m3 [O, K]; scales: float32 [O] -> [T, O] in the dtype of x."""
    values, token_scales = quantize_tokens(x)
    product = values.double() @ weight.double().T
    return (product * token_scales.double() * scales.double()).to(x.dtype)
