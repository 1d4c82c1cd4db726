"""Round to nearest on 255 levels per output row: the weights of LLM.int8 (arXiv 2208.07339).

Pure maths on one weight matrix; knows nothing of how the result is stored. The law: the scale of a
row is a bfloat16 value, so that a reader that keeps it as scale, as 127 times the scale, or in half
the bits, runs bit for bit the weight that was judged.
"""

import torch
from torch import Tensor

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.quantize.rounding import check_finite
from llmopt.quantize.threads import single_thread

INT8_ROWS = QuantSpec(8, None)
LARGEST_CODE = 127


@single_thread()
def quantize_int8(weight: Tensor, *, name: str = "the weight") -> QuantizedWeight:
    """Quantize `weight` [O, K] with scale = max|w| / 127 per row; `name` is for the error message.

    The scales are float32 [O, 1] (a row of zeros gets scale 1), the codes 1 .. 255 around the zero
    point 128. Rounding the scale to bfloat16 moves the largest weight by at most a quarter of a
    step. Raises `QuantizationError` when the weight holds a NaN or an infinity.
    """
    check_finite(name, weight)
    rows = weight.float()
    scales = (rows.abs().amax(dim=1, keepdim=True) / LARGEST_CODE).bfloat16().float()
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    steps = torch.round(rows / scales).clamp_(-LARGEST_CODE, LARGEST_CODE)
    codes = (steps + INT8_ROWS.midpoint).to(torch.uint8)
    return QuantizedWeight(codes, scales, zeros=None, g_idx=None, spec=INT8_ROWS)
