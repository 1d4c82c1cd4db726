"""Rounding to 8-bit floating point (e4m3) with one scale per output row.

Needs no data: an e4m3 value keeps 4 significant bits whatever its size, so a row's scale only has
to keep its largest weight in range. Pure maths; knows nothing of models or files.
Law: the scale is rounded to what the checkpoint stores before any value is chosen with it.
"""

import torch
from torch import Tensor

from llmopt.formats.fp8 import LARGEST_E4M3, Fp8Weight
from llmopt.formats.scales import round_scales
from llmopt.quantize.rounding import check_finite
from llmopt.quantize.threads import single_thread


@single_thread()
def quantize_fp8(
    weight: Tensor, *, scale_dtype: torch.dtype | None = None, name: str = "the weight"
) -> Fp8Weight:
    """Quantize `weight` [O, K]: each row's largest magnitude becomes 448, others the nearest value.

    scale_dtype: what scales are rounded to. None, the default: to the values that float16 and
    bfloat16 share, kept as float32, so that every reader multiplies by the same number. With a
    dtype, scales are absmax / 448 in it, as llm-compressor's FP8_DYNAMIC has them.
    Values beyond the range saturate; a row of zeros has scale 1. Raises `QuantizationError` when
    the weight holds a NaN or an infinity; `name` is for its message.
    """
    check_finite(name, weight)
    rows = weight.float()
    exact = rows.abs().amax(dim=1, keepdim=True) / LARGEST_E4M3
    scales = round_scales(exact).float() if scale_dtype is None else exact.to(scale_dtype)
    scales = torch.where((exact == 0) | (scales == 0), torch.ones_like(scales), scales)
    values = (rows / scales.float()).clamp_(-LARGEST_E4M3, LARGEST_E4M3)
    return Fp8Weight(values.to(torch.float8_e4m3fn), scales)
