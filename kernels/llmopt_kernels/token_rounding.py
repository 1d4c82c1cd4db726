"""Rounding of tokens to int8 or e4m3 inside Triton kernels, one float32 scale per token.

The rounding of `w8a8/reference.py` and `fp8/reference.py`, bit for bit: true divisions, ties to
even. Imports Triton: only `triton.py` modules import it.
"""

import torch
import triton
import triton.language as tl

FORMS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: float32 has no fractions there, ties go to even


@triton.jit
def largest_magnitudes(values):
    """float32 [rows, columns] -> [rows]: NaN of a row that has one, which the hardware's maximum
    drops.
    """
    largest = tl.max(tl.abs(values), axis=1)
    is_broken = tl.max((values != values).to(tl.int32), axis=1) != 0
    return tl.where(is_broken, float("nan"), largest)


@triton.jit
def round_tokens(values, FORM: tl.constexpr):
    """values: float32 [rows, columns], masked columns 0 -> (codes, scales [rows]).

    A row with a NaN has the scale NaN.
    """
    LARGEST: tl.constexpr = 127.0 if FORM == "int8" else 448.0
    scales = tl.div_rn(largest_magnitudes(values), LARGEST)
    scales = tl.where(scales == 0, 1.0, scales)
    quotients = tl.div_rn(values, scales[:, None] + tl.zeros_like(values))
    quotients = tl.minimum(tl.maximum(quotients, -LARGEST), LARGEST)
    if FORM == "int8":
        codes = ((quotients + ROUND) - ROUND).to(tl.int8)
    else:
        codes = quotients.to(tl.float8e4nv)
    return codes, scales
