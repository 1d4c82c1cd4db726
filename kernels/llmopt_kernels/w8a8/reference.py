"""The definition of the W8A8 product: round each token, multiply integers exactly, scale.

s[t] = max_k |x[t, k]| / 127        a[t, k] = round(x[t, k] / s[t])  in -127 .. 127
y[t, o] = s[t] * w[o] * sum_k a[t, k] * b[o, k]

Dynamic per-token symmetric activations of SmoothQuant (Xiao et al., arXiv 2211.10438, "O1"), as
vLLM's int8 kernels round them. Rounding is to nearest, ties to even, in float32.
"""

import torch

LARGEST_CODE = 127


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row of x [T, K]: -> codes int8 [T, K], scales float32 [T, 1].

    A row of zeros has codes 0 and scale 1.
    """
    values = x.float()
    scales = values.abs().amax(dim=1, keepdim=True) / LARGEST_CODE
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = (values / scales).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    return codes.to(torch.int8), scales


def int8_product_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The exact product of int8 a [T, K] and b [O, K]: -> int32 [T, O]. K is at most 2^16."""
    return (a.double() @ b.double().T).to(torch.int32)


def w8a8_reference(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x: [T, K]; weight: int8 [O, K]; scales: float32 [O] -> [T, O] in the dtype of x."""
    codes, token_scales = quantize_tokens(x)
    product = int8_product_reference(codes, weight).double()
    return (product * token_scales.double() * scales.double()).to(x.dtype)
