"""Matrix product with coded weights and inputs rounded to int8 in steps of columns.

    c[t, k] = round(x[t, k] * 127 / a[t, s]),  a[t, s] = max |x[t, k]| over the step s of columns
    y[t, o] = sum_k c[t, k] * a[t, s(k)] / 127 * weight[o, k]

Rounding is half to even, and in float32. An input that is not finite makes all outputs of its token
not a number.
"""

import torch
import torch.nn.functional as F

SMALLEST = 1e-30  # a step of smaller inputs counts as zeros


def quantize_steps(x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round x [T, K] to int8 [T, K] and float32 scales [T, K / step], K a multiple of `step`."""
    grouped = x.float().view(len(x), -1, step)
    largest = grouped.abs().amax(dim=2, keepdim=True)
    largest = torch.where(largest < SMALLEST, 0.0, largest)
    is_finite = torch.isfinite(largest)
    factors = torch.where(
        is_finite & (largest > 0), torch.full_like(largest, 127.0).div(largest), 0.0
    )  # `127.0 / largest` would round a reciprocal first
    codes = torch.where(is_finite, grouped, 0.0).mul(factors).round().to(torch.int8)
    scales = torch.where(is_finite, largest / 127.0, torch.nan)
    return codes.flatten(1), scales.squeeze(2)


def wna8_reference(x: torch.Tensor, weight: torch.Tensor, step: int) -> torch.Tensor:
    """The product in float64. x: [T, K]; weight: the dequantized matrix [O, K]; -> [T, O].

    K is filled up with zeros to a multiple of `step`.
    """
    missing = -x.shape[1] % step
    codes, scales = quantize_steps(F.pad(x, (0, missing)), step)
    rounded = codes.double() * scales.double().repeat_interleave(step, dim=1)
    return rounded @ F.pad(weight, (0, missing)).double().T
