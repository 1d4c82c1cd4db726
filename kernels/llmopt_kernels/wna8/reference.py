"""Matrix product with coded weights and inputs rounded to int8 in steps of columns.

    c[t, k] = round(x[t, k] * 127 / a[t, s]),  a[t, s] = max |x[t, k]| over the step s of columns
    y[t, o] = sum_k c[t, k] * a[t, s(k)] / 127 * weight[o, k]

With two parts, r = x * 127 / a - c is rounded as well, in units of 1 / 254, so that an input has 15
bits: c is then c + round(254 * r) / 254. Rounding is half to even, and in float32. An input that is
not finite makes all outputs of its token not a number.
"""

import torch
import torch.nn.functional as F

SMALLEST = 1e-30  # a step of smaller inputs counts as zeros


def quantize_steps(x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round x [T, K] to int8 [T, K] and float32 scales [T, K / step], K a multiple of `step`."""
    scaled, scales = _in_units(x, step)
    return scaled.round().to(torch.int8).flatten(1), scales


def quantize_rest(x: torch.Tensor, step: int) -> torch.Tensor:
    """What `quantize_steps` leaves of x in 1 / 254 of its units: int8 [T, K]."""
    scaled, _ = _in_units(x, step)
    return ((scaled - scaled.round()) * 254).round().to(torch.int8).flatten(1)


def _in_units(x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x in units of its steps' scales [T, K / step, step], and these float32 [T, K / step]."""
    grouped = x.float().view(len(x), -1, step)
    largest = grouped.abs().amax(dim=2, keepdim=True)
    largest = torch.where(largest < SMALLEST, 0.0, largest)
    is_finite = torch.isfinite(largest)
    factors = torch.where(
        is_finite & (largest > 0), torch.full_like(largest, 127.0).div(largest), 0.0
    )  # `127.0 / largest` would round a reciprocal first
    scales = torch.where(is_finite, largest / 127.0, torch.nan)
    return torch.where(is_finite, grouped, 0.0).mul(factors), scales.squeeze(2)


def wna8_reference(
    x: torch.Tensor, weight: torch.Tensor, step: int, parts: int = 1
) -> torch.Tensor:
    """The product in float64. x: [T, K]; weight: the dequantized matrix [O, K]; -> [T, O].

    K is filled up with zeros to a multiple of `step`.
    """
    missing = -x.shape[1] % step
    padded = F.pad(x, (0, missing))
    codes, scales = quantize_steps(padded, step)
    units = codes.double()
    if parts == 2:
        units += quantize_rest(padded, step).double() / 254
    rounded = units * scales.double().repeat_interleave(step, dim=1)
    return rounded @ F.pad(weight, (0, missing)).double().T
