"""Round to nearest, and GPTQ, on the layers of a decoder block.

Knows how checkpoint modules are stacked in layers; knows nothing of where inputs or statistics come
from, or of files.
Law: rows do not influence each other, so stacked modules are quantized at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.quantize.block_task import BlockTask, LayerTask, Needs
from llmopt.quantize.gptq import GPTQOptions, GPTQResult, quantize_gptq
from llmopt.quantize.layout import LinearModules, Place
from llmopt.quantize.options import ModuleRecord, QuantizedModule
from llmopt.quantize.override import ModuleSpecs
from llmopt.quantize.qronos import corrected_weight
from llmopt.quantize.rtn import quantize_rtn
from llmopt.quantize.statistics import InputStatistics, required_cross, required_hessian


@dataclass(frozen=True, slots=True)
class RtnQuantizer:
    """Plain rounding (`BlockQuantizer`)."""

    specs: ModuleSpecs

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
            spec = self.specs.get(name)
            if spec is not None:
                rounded = quantize_rtn(weight, spec, name=name)
                record = ModuleRecord(name, spec.bits, spec.group_size, rounded.label)
                modules.append(QuantizedModule(rounded, record))
        return modules


@dataclass(frozen=True, slots=True)
class GptqQuantizer:
    """GPTQ (`BlockQuantizer`).

    corrects: whether each weight first makes up for the errors of what was quantized before it
    """

    specs: ModuleSpecs
    options: GPTQOptions
    corrects: bool = False

    @property
    def needs(self) -> Needs:
        """Second moments."""
        return Needs(statistics=True, hessian=True, originals=self.corrects)

    def scale(self, _task: BlockTask, _place: Place, _statistics: InputStatistics, /) -> None:
        """Nothing is scaled."""

    def round(
        self, task: LayerTask, place: Place, statistics: InputStatistics | None, /
    ) -> Sequence[QuantizedModule]:
        """Round the modules of a layer together."""
        modules = task.modules[place]
        spec = layer_spec(self.specs, modules)
        if spec is None:
            return ()
        weight = task.linear(place).weight
        hessian = required_hessian(statistics)
        if self.corrects:
            weight = corrected_weight(weight, hessian, required_cross(statistics))
        result = quantize_gptq(weight, hessian, spec, self.options, name=modules.name)
        return split_modules(modules, result)


def layer_spec(specs: ModuleSpecs, modules: LinearModules) -> QuantSpec | None:
    """The spec of a layer's modules, which share it; None where they are not quantized."""
    return specs.get(modules.parts[0])


def split_modules(modules: LinearModules, result: GPTQResult) -> list[QuantizedModule]:
    """Cut a stacked result into the checkpoint's modules."""
    spec, start, parts = result.weight.spec, 0, []
    for name, size in zip(modules.parts, modules.part_rows, strict=True):
        rows = slice(start, start + size)
        start += size
        losses, energies = result.row_losses[rows], result.row_energies[rows]
        record = ModuleRecord(
            name=name,
            bits=spec.bits,
            group_size=spec.group_size,
            stored_as=result.weight.label,
            loss=float(losses.mean()),
            relative_loss=float(losses.sum() / energies.sum().clamp(min=1e-30)),
            damping=result.damping,
            dead_columns=result.dead_columns,
        )
        parts.append(QuantizedModule(_take_rows(result.weight, rows), record))
    return parts


def _take_rows(weight: QuantizedWeight, rows: slice) -> QuantizedWeight:
    zeros = None if weight.zeros is None else weight.zeros[rows]
    return QuantizedWeight(weight.codes[rows], weight.scales[rows], zeros, None, weight.spec)
