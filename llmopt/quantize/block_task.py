"""One decoder block as one job sees it, and what a method has to offer to work on it.

Knows the parts of a decoder block; knows nothing of calibration, statistics on disk or files.
Law: a method changes the task's own view of the block only, never the block that others share.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llmopt.layers.linear import DenseLinear, Linear
from llmopt.models.decoder import DecoderBlock
from llmopt.quantize.folding import dense, dense_mlp
from llmopt.quantize.layout import LinearModules, Place
from llmopt.quantize.options import QuantizedModule, ReplacedTensor
from llmopt.quantize.statistics import InputStatistics

Finished = QuantizedModule | ReplacedTensor


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method must know of the inputs of each layer.

    statistics: anything at all; hessian: the second moments
    scaling: that `scale` is called, with a sample of the inputs of the attention and the MLP
    originals: the moments with the inputs that the unquantized model has, too
    """

    statistics: bool = False
    hessian: bool = False
    scaling: bool = False
    originals: bool = False


class LayerTask(Protocol):
    """Layers to be quantized: those of a block, or the output head."""

    @property
    def index(self) -> int:
        """The block; one past the last for the head."""

    @property
    def modules(self) -> tuple[LinearModules, ...]:
        """The checkpoint's modules in each layer, by `Place`."""

    def linear(self, place: Place) -> DenseLinear:
        """The full-precision layer at a place."""

    def parts(self, place: Place) -> list[tuple[str, Tensor]]:
        """The checkpoint modules stacked in a layer, each with its rows of the weight."""


@dataclass(slots=True)
class BlockTask:
    """A view of block `index`, and what is finished of it."""

    index: int
    block: DecoderBlock
    modules: tuple[LinearModules, ...]
    finished: list[Finished] = field(default_factory=list)

    def linear(self, place: Place) -> DenseLinear:
        """The full-precision layer at a place of the block; quantized sources are refused."""
        (linear,) = self._stage(place)
        return linear

    def replace(self, place: Place, linear: Linear) -> None:
        """Put another layer there."""
        attention = self.block.attention
        match place:
            case Place.QKV:
                attention.qkv = linear
            case Place.OUTPUT:
                attention.output = linear
            case Place.GATE_UP:
                dense_mlp(self.block).gate_up = linear
            case Place.DOWN:
                dense_mlp(self.block).down = linear

    def parts(self, place: Place) -> list[tuple[str, Tensor]]:
        """The modules stacked in a layer, or in the layers of all experts."""
        modules, linears = self.modules[place], self._stage(place)
        sizes = list(modules.part_rows[: len(modules.part_rows) // len(linears)])
        rows = [part for linear in linears for part in torch.split(linear.weight, sizes)]
        return list(zip(modules.parts, rows, strict=True))

    def _stage(self, place: Place) -> list[DenseLinear]:
        return [dense(linear) for linear in self.block.stages[place]]


@dataclass(frozen=True, slots=True)
class HeadTask:
    """The output head: one layer of one module, whatever the place that is asked for."""

    index: int
    head: DenseLinear
    modules: tuple[LinearModules, ...]

    def linear(self, _place: Place) -> DenseLinear:
        """The head."""
        return self.head

    def parts(self, place: Place) -> list[tuple[str, Tensor]]:
        """Its module."""
        return [(self.modules[place].name, self.head.weight)]


class BlockQuantizer(Protocol):
    """A method: it rounds the four layers of a block one after the other."""

    @property
    def needs(self) -> Needs:
        """What `scale` and `round` must be given."""

    def scale(self, task: BlockTask, place: Place, statistics: InputStatistics, /) -> None:
        """Before the attention (place QKV) or the MLP (GATE_UP): move sizes between its tensors.

        Called only if `needs` says so.
        """

    def round(
        self, task: LayerTask, place: Place, statistics: InputStatistics | None, /
    ) -> Sequence[QuantizedModule]:
        """Quantize a layer, of a block or the head; nothing where its modules stay as they are."""


def view_of(block: DecoderBlock) -> DecoderBlock:
    """Return a block of the same tensors whose parts can be replaced without touching `block`."""
    view = copy.copy(block)
    view.attention, view.mlp = copy.copy(block.attention), copy.copy(block.mlp)
    return view


def rounded_layer(original: DenseLinear, modules: Sequence[QuantizedModule]) -> DenseLinear:
    """The layer that computes with the quantized weights of its modules."""
    weight = torch.cat([module.weight.dequantize() for module in modules])
    return DenseLinear(weight, original.bias)


def column_scales(before: Tensor, after: Tensor) -> Tensor:
    """Return by what the columns of a weight [O, K] were multiplied, float32 [K]."""
    old, new = (torch.linalg.vector_norm(weight, dim=0) for weight in (before, after))
    return torch.where((old > 0) & (new > 0), new / old, torch.ones_like(old))
