"""AWQ's scales on one decoder block: searched for, and folded in.

Four places: norm -> q, k, v; v -> o (shared by the query heads of a key/value head); norm ->
gate, up; up -> down. The first and third are judged by the output of the attention or the MLP, the
others by the output of the layer itself.
Knows the parts of a decoder block; knows nothing of files or of how the weight is rounded later.
Law: after folding, the block computes what it computed before, up to rounding in the dtypes that
the checkpoint stores.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmopt.formats.quantized import QuantSpec
from llmopt.layers.linear import DenseLinear, Linear
from llmopt.models.decoder import DecoderBlock, Rotary
from llmopt.models.mlp import MLP
from llmopt.quantize.awq import (
    candidate_scales,
    mean_magnitudes,
    search_scales,
    weight_magnitudes,
)
from llmopt.quantize.folding import (
    HeadLayout,
    dense,
    dense_mlp,
    divide_last_rows,
    fold_norm,
    multiply_columns,
)
from llmopt.quantize.gptq import accumulate_hessian, row_energies
from llmopt.quantize.rtn import quantize_rtn
from llmopt_kernels.paged_attention import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Sequences:
    """What attention needs besides the tokens: their rotary tables, and where sequences end."""

    rotary: Rotary
    metadata: AttentionMetadata


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """The target format that candidates are rounded to, and the number of candidates."""

    spec: QuantSpec
    num_ratios: int


@dataclass(frozen=True, slots=True)
class ParentInputs:
    """What an attention or an MLP reads.

    sample: [t, C] the tokens that candidates are judged on
    means: [C] mean |x| over all calibration tokens
    """

    sample: Tensor
    means: Tensor


class PassThrough:
    """Stands where a linear layer was, and answers with the input that it would have had."""

    weight_bytes = 0
    kernel = "none"

    def __init__(self, features: int) -> None:
        self.in_features = features
        self.out_features = features

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, K] -> the same x."""
        return x


def scale_attention(
    block: DecoderBlock,
    inputs: ParentInputs,
    sequences: Sequences,
    search: ScaleSearch,
    *,
    norm_dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> None:
    """Scale q, k, v and o of a block in place.

    The block's input norm is folded in `norm_dtype`, and v's bias, if any, in `bias_dtype`.
    """
    attention = block.attention
    qkv, output = dense(attention.qkv), dense(attention.output)

    def attend(linear: Linear, projection: Linear) -> Tensor:
        attention.qkv, attention.output = linear, projection
        return attention.forward(inputs.sample, sequences.rotary, sequences.metadata, None)

    scales = _search_parent(qkv, inputs.means, lambda linear: attend(linear, output), search)
    block.input_norm, scales = fold_norm(block.input_norm, scales, norm_dtype)
    attended = attend(qkv, PassThrough(output.in_features))
    heads = HeadLayout(attention.num_heads, attention.num_kv_heads, attention.head_dim)
    shared = _search_layer(output, attended, heads, search)
    attention.qkv = divide_last_rows(multiply_columns(qkv, scales), shared, bias_dtype)
    attention.output = multiply_columns(output, heads.repeat(shared))


def scale_mlp(
    block: DecoderBlock,
    inputs: ParentInputs,
    search: ScaleSearch,
    *,
    norm_dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> None:
    """Scale gate, up and down of a block in place.

    The block's second norm is folded in `norm_dtype`, and up's bias, if any, in `bias_dtype`.
    """
    mlp = dense_mlp(block)
    gate_up, down = dense(mlp.gate_up), dense(mlp.down)

    def run(linear: Linear, projection: Linear) -> Tensor:
        return MLP(linear, projection, mlp.activation).forward(inputs.sample)

    scales = _search_parent(gate_up, inputs.means, lambda linear: run(linear, down), search)
    block.post_norm, scales = fold_norm(block.post_norm, scales, norm_dtype)
    gated = run(gate_up, PassThrough(down.in_features))
    inner = _search_layer(down, gated, HeadLayout(1, 1, down.in_features), search)
    mlp.gate_up = divide_last_rows(multiply_columns(gate_up, scales), inner, bias_dtype)
    mlp.down = multiply_columns(down, inner)


def _search_parent(
    linear: DenseLinear, means: Tensor, parent: Callable[[Linear], Tensor], search: ScaleSearch
) -> Tensor:
    """Search scales [K] of `linear` by the output that `parent` has with another layer in place."""
    target = parent(linear)

    def loss(scales: Tensor) -> float:
        output = parent(DenseLinear(_rounded(linear.weight, scales, search.spec), linear.bias))
        return float(F.mse_loss(output, target))

    weights = weight_magnitudes(linear.weight, search.spec)
    candidates = candidate_scales(means, weights, search.num_ratios)
    return search_scales(candidates, loss)


def _search_layer(
    linear: DenseLinear, inputs: Tensor, heads: HeadLayout, search: ScaleSearch
) -> Tensor:
    """Search the scales [KH * D] of what a layer reads, by its own output on inputs [T, K]."""
    hessian = accumulate_hessian(inputs)

    def loss(scales: Tensor) -> float:
        error = _rounded(linear.weight, heads.repeat(scales), search.spec) - linear.weight
        return float(row_energies(error, hessian).mean())

    means = heads.share(mean_magnitudes(inputs))
    weights = heads.share(weight_magnitudes(linear.weight, search.spec))
    return search_scales(candidate_scales(means, weights, search.num_ratios), loss)


def _rounded(weight: Tensor, scales: Tensor, spec: QuantSpec) -> Tensor:
    """The weight [O, K] as it acts on unscaled inputs after being scaled and rounded."""
    return quantize_rtn(weight * scales, spec).dequantize().div_(scales)
