"""AWQ over a whole model: one pass over the blocks, each calibrated on the quantized prefix.

Within a block the attention is scaled and quantized first, and the MLP then sees what the quantized
attention leaves. Weights are rounded to nearest on clipped ranges or, for "awq+gptq", by GPTQ.
Yields the quantized modules, and the norms and biases that the scales changed. Knows nothing of
files.
Law: every layer is rounded for the inputs that it will really get.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.layers.linear import DenseLinear, Linear
from llmopt.models.llama import DecoderBlock, LlamaModel
from llmopt.quantize.awq import mean_magnitudes
from llmopt.quantize.awq_clip import search_clip
from llmopt.quantize.awq_scaling import (
    ParentInputs,
    PassThrough,
    ScaleSearch,
    Sequences,
    dense,
    scale_attention,
    scale_mlp,
)
from llmopt.quantize.calibration import CalibrationData
from llmopt.quantize.gptq import (
    GPTQResult,
    accumulate_hessian,
    quantize_gptq,
    row_energies,
)
from llmopt.quantize.layout import LinearModules, block_modules
from llmopt.quantize.options import QuantizedModule, QuantizeOptions, ReplacedTensor
from llmopt.quantize.rounding import Grid, check_finite, min_max_grid, quantize_codes
from llmopt.quantize.sequential import split_modules
from llmopt_kernels.paged_attention import AttentionMetadata

Finished = QuantizedModule | ReplacedTensor


@dataclass(frozen=True, slots=True)
class _Calibration:
    """What stays the same from block to block.

    sequences: of all calibration tokens
    sample, sample_rows: the tokens that scales are judged on, and their rows among all of them
    dtype_of: the dtype in which the checkpoint stores the tensor of a name
    """

    sequences: Sequences
    sample: Sequences
    sample_rows: Tensor
    options: QuantizeOptions
    dtype_of: Callable[[str], torch.dtype]

    @property
    def search(self) -> ScaleSearch:
        return ScaleSearch(self.options.spec, self.options.awq.num_ratios)


def scale_and_quantize_blocks(
    model: LlamaModel,
    calibration: CalibrationData,
    options: QuantizeOptions,
    dtype_of: Callable[[str], torch.dtype],
) -> Iterator[Finished]:
    """Scale and quantize the decoder blocks of a float32 model in order, as they are done.

    Norms and biases are folded in the dtype in which the checkpoint stores them, `dtype_of` their
    name. The model is consumed: its blocks are released one by one. Raises `QuantizationError`
    where a weight or an input is not finite.
    """
    assert model.dtype == torch.float32, "calibration runs in float32"
    windows, length = calibration.tokens.shape
    chosen = choose_sample(windows, length, options.awq.search_tokens)
    rows = torch.arange(windows * length).view(windows, length)[chosen].flatten()
    sequences, sample = (_sequences(model, n, length) for n in (windows, len(chosen)))
    fixed = _Calibration(sequences, sample, rows, options, dtype_of)
    hidden = model.embed(calibration.tokens.flatten())  # [T, C]
    for index in range(len(model.blocks)):
        work = _BlockWork(index, model.blocks.pop(0), block_modules(model.config, index), fixed)
        work.check_weights()
        hidden = hidden + work.run_attention(hidden)
        hidden = hidden + work.run_mlp(hidden)
        yield from work.finished


def choose_sample(num_windows: int, window_tokens: int, num_tokens: int) -> list[int]:
    """Return evenly spaced windows that hold about `num_tokens` tokens: at least 1, at most all."""
    count = min(num_windows, max(1, num_tokens // window_tokens))
    return [index * num_windows // count for index in range(count)]


def _sequences(model: LlamaModel, num_windows: int, window_tokens: int) -> Sequences:
    rotary = model.rotary(torch.arange(window_tokens).repeat(num_windows))
    return Sequences(rotary, AttentionMetadata.dense((window_tokens,) * num_windows))


@dataclass(slots=True)
class _BlockWork:
    """One block, and what is finished of it."""

    index: int
    block: DecoderBlock
    modules: tuple[LinearModules, ...]
    fixed: _Calibration
    finished: list[Finished] = field(default_factory=list)

    def check_weights(self) -> None:
        """Raise `QuantizationError`, naming the layer, where a weight is not finite."""
        for modules, linear in zip(self.modules, self.block.linears, strict=True):
            check_finite(modules.name, dense(linear).weight)

    def run_attention(self, hidden: Tensor) -> Tensor:
        """Scale and quantize the attention; return its output on hidden states [T, C]."""
        block, attention, fixed = self.block, self.block.attention, self.fixed
        qkv, output = self.modules[:2]
        norm_name = f"model.layers.{self.index}.input_layernorm.weight"
        scale_attention(
            block,
            self._parent_inputs(qkv, block.input_norm(hidden)),
            fixed.sample,
            fixed.search,
            norm_dtype=fixed.dtype_of(norm_name),
            bias_dtype=self._bias_dtype(qkv, attention.qkv),
        )
        self._replace(norm_name, block.input_norm.weight, qkv, attention.qkv)
        x = block.input_norm(hidden)
        unclipped = sum(qkv.part_rows[:2])  # attention sharpens what clipping does to q and k
        attention.qkv = self._quantize(qkv, attention.qkv, x, unclipped)
        projection = attention.output
        attention.output = PassThrough(projection.in_features)
        attended = attention.forward(x, fixed.sequences.rotary, fixed.sequences.metadata, None)
        return self._quantize(output, projection, attended)(attended)

    def run_mlp(self, hidden: Tensor) -> Tensor:
        """Scale and quantize the MLP; return its output on hidden states [T, C]."""
        block, mlp, fixed = self.block, self.block.mlp, self.fixed
        gate_up, down = self.modules[2:]
        norm_name = f"model.layers.{self.index}.post_attention_layernorm.weight"
        scale_mlp(
            block,
            self._parent_inputs(gate_up, block.post_norm(hidden)),
            fixed.search,
            norm_dtype=fixed.dtype_of(norm_name),
            bias_dtype=self._bias_dtype(gate_up, mlp.gate_up),
        )
        self._replace(norm_name, block.post_norm.weight, gate_up, mlp.gate_up)
        x = block.post_norm(hidden)
        mlp.gate_up = self._quantize(gate_up, mlp.gate_up, x)
        projection = mlp.down
        mlp.down = PassThrough(projection.in_features)
        gated = mlp.forward(x)
        return self._quantize(down, projection, gated)(gated)

    def _parent_inputs(self, modules: LinearModules, x: Tensor) -> ParentInputs:
        check_finite(f"the input of {modules.name}", x)
        return ParentInputs(x[self.fixed.sample_rows], mean_magnitudes(x))

    def _bias_dtype(self, modules: LinearModules, linear: Linear) -> torch.dtype:
        has_bias = dense(linear).bias is not None
        return self.fixed.dtype_of(f"{modules.parts[-1]}.bias") if has_bias else torch.float32

    def _replace(
        self, norm_name: str, norm_weight: Tensor, modules: LinearModules, linear: Linear
    ) -> None:
        """Record the norm, and the bias of the rows that were divided (the last of the parts)."""
        stored = norm_weight.to(self.fixed.dtype_of(norm_name))
        self.finished.append(ReplacedTensor(norm_name, stored))
        bias = dense(linear).bias
        if bias is not None:
            divided = bias[-modules.part_rows[-1] :].to(self._bias_dtype(modules, linear))
            self.finished.append(ReplacedTensor(f"{modules.parts[-1]}.bias", divided))

    def _quantize(
        self, modules: LinearModules, linear: Linear, x: Tensor, unclipped_rows: int = 0
    ) -> DenseLinear:
        """Round a layer for its inputs [T, K]; return the layer with the rounded weight."""
        check_finite(f"the input of {modules.name}", x)
        original, options = dense(linear), self.fixed.options
        hessian = accumulate_hessian(x)
        if options.uses_gptq:
            result = quantize_gptq(
                original.weight, hessian, options.spec, options.gptq, name=modules.name
            )
        else:
            clipped_from = unclipped_rows if options.awq.clip else original.out_features
            result = round_clipped(original.weight, hessian, options.spec, clipped_from)
        self.finished.extend(split_modules(self.index, modules, result))
        return DenseLinear(result.weight.dequantize(), original.bias)


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
