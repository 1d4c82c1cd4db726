"""Moving sizes from a layer's inputs into its weight: into the norm, or the layer, before it.

A channel that is divided by s in what produces it and multiplied by s in what reads it changes
nothing but what rounding does to it. AWQ and SmoothQuant choose s; here it is folded. Knows the
parts of a decoder block; knows nothing of how scales are found, of rounding or files.
Law: the scales that are returned are those that the stored tensors really divide by, so after
folding the block computes what it computed before, up to float32 rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.layers.linear import DenseLinear, Linear
from llmopt.layers.norm import RMSNorm
from llmopt.models.decoder import BlockNorm, DecoderBlock
from llmopt.models.mlp import MLP


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Which inputs of a layer come from the same channel of what produces them.

    Query heads that read one key/value head share its channels. One head of each kind: every
    input has a channel of its own.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def share(self, values: Tensor) -> Tensor:
        """Average [H * D] over the query heads of each key/value head: -> [KH * D]."""
        return self._by_head(values).mean(dim=1).flatten()

    def largest(self, values: Tensor) -> Tensor:
        """The maximum of [H * D] over the query heads of each key/value head: -> [KH * D]."""
        return self._by_head(values).amax(dim=1).flatten()

    def repeat(self, values: Tensor) -> Tensor:
        """Give every query head the values of its key/value head: [KH * D] -> [H * D]."""
        heads = values.view(self.num_kv_heads, self.head_dim)
        times = self.num_heads // self.num_kv_heads
        return heads.repeat_interleave(times, dim=0).flatten()

    def _by_head(self, values: Tensor) -> Tensor:
        return values.view(self.num_kv_heads, -1, self.head_dim)


def dense(linear: Linear) -> DenseLinear:
    """The layer as a full-precision one; sources that are quantized are refused before loading."""
    assert isinstance(linear, DenseLinear), "quantized sources are refused before loading"
    return linear


def dense_mlp(block: DecoderBlock) -> MLP:
    """The MLP of a block that has one; methods that look at its inputs are refused for experts."""
    assert isinstance(block.mlp, MLP), "experts are refused before loading"
    return block.mlp


def divide_stored(
    tensor: Tensor, scales: Tensor, dtype: torch.dtype, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Divide a norm's gain [K] by scales, as a checkpoint that stores `dtype` can hold it.

    tensor: the norm's weight, whose gain is weight + offset
    Returns the new weight, in `dtype`, and the scales that its gain is really divided by, float32
    [K]: multiplying the next weight by these keeps the function up to float32 rounding. A channel
    whose gain would vanish or overflow is not scaled.
    """
    original = tensor.float()
    gain = original + offset
    divided = (gain / scales - offset).to(dtype)
    fits = torch.isfinite(divided) & (divided.float() + offset != 0)
    divided = torch.where(fits, divided, original.to(dtype))
    return divided, torch.where(fits, gain / (divided.float() + offset), torch.ones_like(scales))


def fold_norm(norm: BlockNorm, scales: Tensor, dtype: torch.dtype) -> tuple[RMSNorm, Tensor]:
    """The norm with its gain divided, and the scales [K] that it is really divided by."""
    assert isinstance(norm, RMSNorm), "models with LayerNorm are refused before loading"
    weight, scales = divide_stored(norm.weight, scales, dtype, norm.offset)
    return RMSNorm(weight.float(), norm.eps, norm.offset), scales


def multiply_columns(linear: DenseLinear, scales: Tensor) -> DenseLinear:
    """The layer for inputs that were divided by `scales` [K]."""
    return DenseLinear(linear.weight * scales, linear.bias)


def divide_last_rows(linear: DenseLinear, scales: Tensor, bias_dtype: torch.dtype) -> DenseLinear:
    """Divide the last outputs of a stacked layer (v of q, k, v; up of gate, up) by `scales`.

    Its bias, if any, becomes what `bias_dtype` holds.
    """
    divisor = linear.weight.new_ones(linear.out_features)
    divisor[-len(scales) :] = scales
    bias = None if linear.bias is None else (linear.bias / divisor).to(bias_dtype).float()
    return DenseLinear(linear.weight / divisor.unsqueeze(1), bias)
