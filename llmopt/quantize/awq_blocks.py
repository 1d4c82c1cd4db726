"""AWQ on the layers of a decoder block.

The attention, and later the MLP, is scaled; then its layers are rounded: to nearest on clipped
ranges or, for "awq+gptq", by GPTQ. Yields the quantized modules, and the norms and biases that the
scales changed. Knows nothing of where inputs or statistics come from, or of files.
Law: a half of a block of which a layer stays in full precision is not scaled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.models.module_names import ModuleNames
from llmopt.quantize.awq import AWQOptions
from llmopt.quantize.awq_clip import search_clip
from llmopt.quantize.awq_scaling import (
    ParentInputs,
    ScaleSearch,
    Sequences,
    scale_attention,
    scale_mlp,
)
from llmopt.quantize.block_task import BlockTask, LayerTask, Needs
from llmopt.quantize.gptq import GPTQOptions, GPTQResult, quantize_gptq, row_energies
from llmopt.quantize.layout import Place
from llmopt.quantize.options import QuantizedModule
from llmopt.quantize.override import ModuleSpecs
from llmopt.quantize.rounding import Grid, check_finite, min_max_grid, quantize_codes
from llmopt.quantize.scaled_tensors import scaled_tensors, stored_dtypes
from llmopt.quantize.statistics import InputStatistics, required_hessian
from llmopt.quantize.uniform_blocks import layer_spec, split_modules


@dataclass(frozen=True, slots=True)
class AwqQuantizer:
    """AWQ (`BlockQuantizer`).

    gptq: how columns are rounded, or None for rounding to nearest
    sequences: of the sample that scales are judged on
    dtype_of: the dtype in which the checkpoint stores the tensor of a name
    """

    specs: ModuleSpecs
    options: AWQOptions
    gptq: GPTQOptions | None
    sequences: Sequences
    dtype_of: Callable[[str], torch.dtype]
    names: ModuleNames

    @property
    def needs(self) -> Needs:
        """Everything."""
        return Needs(statistics=True, hessian=True, scaling=True)

    def scale(self, task: BlockTask, place: Place, statistics: InputStatistics, /) -> None:
        """Scale the attention (place QKV) or the MLP (GATE_UP)."""
        for each in (place, Place(place + 1)):
            check_finite(task.modules[each].name, task.linear(each).weight)
        assert statistics.sample is not None, "as needed"
        spec = layer_spec(self.specs, task.modules[place])
        if spec is None or layer_spec(self.specs, task.modules[place + 1]) is None:
            return
        inputs = ParentInputs(statistics.sample, statistics.mean_magnitude)
        search = ScaleSearch(spec, self.options.num_ratios)
        dtypes = stored_dtypes(task, place, self.names, self.dtype_of)
        stored = {"norm_dtype": dtypes.norm, "bias_dtype": dtypes.bias}
        if place is Place.QKV:
            scale_attention(task.block, inputs, self.sequences, search, **stored)
        else:
            scale_mlp(task.block, inputs, search, **stored)
        task.finished.extend(scaled_tensors(task, place, self.names, dtypes))

    def round(
        self, task: LayerTask, place: Place, statistics: InputStatistics | None, /
    ) -> Sequence[QuantizedModule]:
        """Round the modules of a layer together."""
        modules, weight = task.modules[place], task.linear(place).weight
        spec = layer_spec(self.specs, modules)
        if spec is None:
            return ()
        hessian = required_hessian(statistics)
        if self.gptq is not None:
            result = quantize_gptq(weight, hessian, spec, self.gptq, name=modules.name)
        else:
            check_finite(modules.name, weight)
            result = round_clipped(weight, hessian, spec, self._clipped_from(task, place))
        return split_modules(modules, result)

    def _clipped_from(self, task: LayerTask, place: Place) -> int:
        """Return the first row that is clipped: attention sharpens what clipping does to q, k."""
        if not self.options.clip:
            return task.linear(place).out_features
        modules = task.modules[place]
        return sum(modules.part_rows) - modules.last_rows if place is Place.QKV else 0


def choose_sample(num_windows: int, window_tokens: int, num_tokens: int) -> list[int]:
    """Return evenly spaced windows that hold about `num_tokens` tokens: at least 1, at most all."""
    count = min(num_windows, max(1, num_tokens // window_tokens))
    return [index * num_windows // count for index in range(count)]


def round_clipped(
    weight: Tensor, hessian: Tensor, spec: QuantSpec, clipped_from: int
) -> GPTQResult:
    """Round `weight` [O, K] to nearest, on min-max grids and, from row `clipped_from`, clipped."""
    plain, clipped = weight[:clipped_from], weight[clipped_from:]
    grids = [min_max_grid(plain, spec)] if len(plain) else []
    grids += [search_clip(clipped, hessian, spec)] if len(clipped) else []
    zeros = None if spec.symmetric else torch.cat([g.zeros for g in grids if g.zeros is not None])
    grid = Grid(torch.cat([grid.scales for grid in grids]), zeros)
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    quantized = QuantizedWeight(codes, grid.scales, grid.zeros, None, spec)
    return GPTQResult(
        weight=quantized,
        row_losses=row_energies(weight - quantized.dequantize(), hessian),
        row_energies=row_energies(weight, hessian),
        damping=None,
        dead_columns=int((hessian.diagonal() == 0).sum()),
    )
