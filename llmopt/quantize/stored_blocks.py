"""Methods that look at nothing but the weight: codebooks, 8-bit rows, 8-bit floats.

Knows nothing of data, models or files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from llmopt.formats.quantized import StoredWeight
from llmopt.quantize.block_task import BlockTask, LayerTask, Needs
from llmopt.quantize.layout import Place
from llmopt.quantize.options import ModuleRecord, QuantizedModule
from llmopt.quantize.override import ModuleSpecs
from llmopt.quantize.statistics import InputStatistics


@dataclass(frozen=True, slots=True)
class StoredQuantizer:
    """Rounds every module by itself (`BlockQuantizer`).

    quantize: name and weight [O, K] -> the weight as it is stored
    bits, group_size: of a code, and weights that share a scale (None: a row)
    """

    specs: ModuleSpecs
    quantize: Callable[[str, Tensor], StoredWeight]
    bits: int
    group_size: int | None

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def scale(self, _task: BlockTask, _place: Place, _statistics: InputStatistics, /) -> None:
        """Nothing is scaled."""

    def round(
        self, task: LayerTask, place: Place, _statistics: InputStatistics | None, /
    ) -> Sequence[QuantizedModule]:
        """Round the modules of a layer."""
        modules = []
        for name, weight in task.parts(place):
            if name in self.specs:
                stored = self.quantize(name, weight)
                record = ModuleRecord(name, self.bits, self.group_size, stored.label)
                modules.append(QuantizedModule(stored, record))
        return modules
