"""Round to nearest on the min-max grid: the baseline that every paper compares with.

No calibration data, no search; knows nothing of how the result is stored.
"""

from torch import Tensor

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.quantize.rounding import check_finite, min_max_grid, quantize_codes
from llmopt.quantize.threads import single_thread


@single_thread()
def quantize_rtn(weight: Tensor, spec: QuantSpec, *, name: str = "the weight") -> QuantizedWeight:
    """Quantize `weight` [O, K] by plain rounding; `name` is for the error message.

    Raises `QuantizationError` when the weight holds a NaN or an infinity.
    """
    check_finite(name, weight)
    grid = min_max_grid(weight, spec)
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    return QuantizedWeight(codes=codes, scales=grid.scales, zeros=grid.zeros, g_idx=None, spec=spec)
