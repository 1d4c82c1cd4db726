"""Round to nearest on the min-max grid: the baseline that every paper compares with.

No calibration data, no search; knows nothing of how the result is stored.
"""

from collections.abc import Iterator

from torch import Tensor

from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.models.config import ModelConfig
from llmopt.quantize.layout import block_modules
from llmopt.quantize.options import ModuleRecord, QuantizedModule
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


def round_modules(reader: CheckpointReader, spec: QuantSpec) -> Iterator[QuantizedModule]:
    """Quantize the modules of a checkpoint one after the other, in the order of its blocks."""
    config = ModelConfig.from_hf(reader.config)
    for block in range(config.num_layers):
        for linear in block_modules(config, block):
            for name in linear.parts:
                weight = quantize_rtn(reader.tensor(f"{name}.weight"), spec, name=name)
                record = ModuleRecord(name, spec.bits, spec.group_size)
                yield QuantizedModule(block, weight, record)
