"""W8A8: SmoothQuant, and then rounding to 8-bit rows, on the layers of a decoder block.

The layers are rounded when the inputs of all of them are known, because smoothing moves the sizes
of each layer's inputs into the layer before. Knows nothing of where statistics come from, or of
files.
Law: a half of a block of which a layer stays in full precision is not smoothed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.quantized import QuantSpec
from llmopt.models.module_names import ModuleNames
from llmopt.quantize.block_task import BlockTask, LayerTask, Needs
from llmopt.quantize.layout import Place
from llmopt.quantize.options import ModuleRecord, QuantizedModule
from llmopt.quantize.override import ModuleSpecs
from llmopt.quantize.rtn import quantize_rtn
from llmopt.quantize.scaled_tensors import scaled_tensors, stored_dtypes
from llmopt.quantize.smoothquant import SmoothQuantOptions, smooth_attention, smooth_mlp
from llmopt.quantize.statistics import InputStatistics

_ROWS = QuantSpec(8, None)


@dataclass(frozen=True, slots=True)
class SmoothQuantizer:
    """SmoothQuant with per-token activations (`BlockQuantizer`).

    dtype_of: the dtype in which the checkpoint stores the tensor of a name
    """

    specs: ModuleSpecs
    options: SmoothQuantOptions
    dtype_of: Callable[[str], torch.dtype]
    names: ModuleNames
    _largest: dict[tuple[int, Place], Tensor] = field(default_factory=dict)

    @property
    def needs(self) -> Needs:
        """The largest inputs."""
        return Needs(statistics=True)

    def scale(self, _task: BlockTask, _place: Place, _statistics: InputStatistics, /) -> None:
        """Scaling waits for the block's last layer."""

    def round(
        self, task: LayerTask, place: Place, statistics: InputStatistics | None, /
    ) -> Sequence[QuantizedModule]:
        """Remember a layer's inputs; at the last one, smooth the block and round all its layers."""
        assert statistics is not None, "statistics are gathered where they are needed"
        assert isinstance(task, BlockTask), "the head is not smoothed"
        self._largest[task.index, place] = statistics.largest
        if place is not Place.DOWN:
            return ()
        largest = {each: self._largest.pop((task.index, each)) for each in Place}
        for first, smooth in ((Place.QKV, smooth_attention), (Place.GATE_UP, smooth_mlp)):
            modules = (task.modules[first].parts[0], task.modules[first + 1].parts[0])
            if any(name not in self.specs for name in modules):
                continue
            dtypes = stored_dtypes(task, first, self.names, self.dtype_of)
            smooth(
                task.block,
                largest[first],
                largest[Place(first + 1)],
                self.options,
                norm_dtype=dtypes.norm,
                bias_dtype=dtypes.bias,
            )
            task.finished.extend(scaled_tensors(task, first, self.names, dtypes))
        return [module for each in Place for module in self._round(task, each)]

    def _round(self, task: BlockTask, place: Place) -> list[QuantizedModule]:
        modules = []
        for name, weight in task.parts(place):
            if name in self.specs:
                stored = DynamicWeight(quantize_rtn(weight, _ROWS, name=name), "int8")
                modules.append(QuantizedModule(stored, ModuleRecord(name, 8, None, stored.label)))
        return modules
