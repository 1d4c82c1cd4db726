"""Matrix product with integer weights and floating-point activations, by dequantizing first.

y[t, o] = sum_k x[t, k] * (code[o, k] - zero[o, g(k)]) * scale[o, g(k)]  with g(k) = k // (K / G).
"""

import torch


def wna16_reference(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """The product in float64. x: [T, K]; codes: uint8 [O, K]; scales, zeros: [O, G]; -> [T, O]."""
    groups = scales.shape[1]
    grouped = codes.double().view(len(codes), groups, -1) - zeros.double().unsqueeze(-1)
    weight = (grouped * scales.double().unsqueeze(-1)).flatten(1)
    return (x.double() @ weight.T).to(x.dtype)
