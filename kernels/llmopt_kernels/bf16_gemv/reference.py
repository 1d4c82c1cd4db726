"""Matrix product with a bfloat16 weight: y = bfloat16(x) @ weight^T."""

import torch


def bf16_gemv_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product in float64. x: [T, K]; weight: bfloat16 [O, K]; -> [T, O]."""
    return x.to(torch.bfloat16).double() @ weight.double().T
