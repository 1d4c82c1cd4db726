"""GPTQ over a whole model: one forward pass, quantizing each layer at the moment it first runs.

Each linear layer is replaced by one that waits for its input. When the block's forward reaches
it, it builds the Hessian from all calibration tokens, quantizes its weight, and answers with the
output of the quantized weight. So every layer is calibrated on inputs from the already quantized
prefix (q, k and v, then o, then gate and up, then down, then the next block) in a single pass.
Knows nothing of files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.layers.linear import DenseLinear, Linear
from llmopt.models.decoder import Decoder, DecoderBlock
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.gptq import GPTQOptions, GPTQResult, accumulate_hessian, quantize_gptq
from llmopt.quantize.layout import LinearModules, block_modules
from llmopt.quantize.options import ModuleRecord, QuantizedModule
from llmopt.quantize.rounding import check_finite
from llmopt_kernels.paged_attention import AttentionMetadata


@dataclass(slots=True)
class _LinearCalibration:
    """A linear layer that quantizes itself on the first input that it sees."""

    name: str
    original: DenseLinear
    spec: QuantSpec
    options: GPTQOptions
    result: GPTQResult | None = field(default=None, init=False)
    kernel: str = field(default="calibration", init=False)

    @property
    def in_features(self) -> int:
        return self.original.in_features

    @property
    def out_features(self) -> int:
        return self.original.out_features

    @property
    def weight_bytes(self) -> int:
        return self.original.weight_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize, then compute. x: [T, K] of all calibration tokens -> [T, O]."""
        assert self.result is None, "a block runs each of its linear layers once"
        check_finite(f"the input of {self.name}", x)
        hessian = accumulate_hessian(x)
        self.result = quantize_gptq(
            self.original.weight, hessian, self.spec, self.options, name=self.name
        )
        return F.linear(x, self.result.weight.dequantize(), self.original.bias)


def quantize_blocks(
    model: Decoder, calibration: CalibrationData, spec: QuantSpec, options: GPTQOptions
) -> Iterator[QuantizedModule]:
    """Quantize the decoder blocks of a float32 model in order, yielding modules as they are done.

    The model is consumed: its blocks are released one by one.
    """
    assert model.dtype == torch.float32, "calibration runs in float32"
    windows, length = calibration.tokens.shape
    hidden = model.embed(calibration.tokens.flatten())  # [T, C]
    rotary = model.rotary(torch.arange(length).repeat(windows))
    metadata = AttentionMetadata.dense((length,) * windows)
    for index in range(len(model.blocks)):
        block = model.blocks.pop(0)
        waiting = _install(block, block_modules(model.config, index), spec, options)
        hidden = block.forward(hidden, rotary, metadata, None)
        for modules, linear in waiting:
            assert linear.result is not None, "the block ran every linear layer"
            yield from split_modules(index, modules, linear.result)


def _install(
    block: DecoderBlock,
    modules: Sequence[LinearModules],
    spec: QuantSpec,
    options: GPTQOptions,
) -> list[tuple[LinearModules, _LinearCalibration]]:
    """Replace the block's linear layers; return the replacements in the order they will run."""

    def waiting(modules: LinearModules, linear: Linear) -> _LinearCalibration:
        assert isinstance(linear, DenseLinear), "quantized sources are refused before loading"
        return _LinearCalibration(modules.name, linear, spec, options)

    linears = [waiting(m, linear) for m, linear in zip(modules, block.linears, strict=True)]
    block.attention.qkv, block.attention.output, block.mlp.gate_up, block.mlp.down = linears
    return list(zip(modules, linears, strict=True))


def split_modules(
    block: int, modules: LinearModules, result: GPTQResult
) -> Iterator[QuantizedModule]:
    """Cut a stacked result into the checkpoint's modules."""
    start = 0
    for name, size in zip(modules.parts, modules.part_rows, strict=True):
        rows = slice(start, start + size)
        start += size
        losses, energies = result.row_losses[rows], result.row_energies[rows]
        record = ModuleRecord(
            name=name,
            bits=result.weight.spec.bits,
            group_size=result.weight.spec.group_size,
            loss=float(losses.mean()),
            relative_loss=float(losses.sum() / energies.sum().clamp(min=1e-30)),
            damping=result.damping,
            dead_columns=result.dead_columns,
        )
        yield QuantizedModule(block, _take_rows(result.weight, rows), record)


def _take_rows(weight: QuantizedWeight, rows: slice) -> QuantizedWeight:
    zeros = None if weight.zeros is None else weight.zeros[rows]
    return QuantizedWeight(weight.codes[rows], weight.scales[rows], zeros, None, weight.spec)
