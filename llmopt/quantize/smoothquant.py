"""SmoothQuant: move the outliers of a layer's inputs into its weight, where rounding copes better.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models" (arXiv 2211.10438). Inputs that are rounded token by token share one scale among all
channels, so a channel that is always large costs the others their precision. Knows the parts of a
decoder block; knows nothing of data, rounding or files.
Law: after smoothing, the block computes what it computed before, up to rounding in the dtypes that
the checkpoint stores.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import QuantizationError
from llmopt.models.decoder import DecoderBlock
from llmopt.quantize.folding import (
    HeadLayout,
    dense,
    dense_mlp,
    divide_last_rows,
    fold_norm,
    multiply_columns,
)

SMALLEST = 1e-5


@dataclass(frozen=True, slots=True)
class SmoothQuantOptions:
    """How SmoothQuant runs: how much of the inputs' sizes goes into the weight, from 0 to 1.

    alpha: behind norms, which pass the outliers of the hidden states on
    inner_alpha: behind the attention and the gate, whose inputs have fewer outliers, and where what
        one weight gains another one loses
    """

    alpha: float = 0.65
    inner_alpha: float = 0.5

    def __post_init__(self) -> None:
        for alpha in (self.alpha, self.inner_alpha):
            if not 0 <= alpha <= 1:
                raise QuantizationError(
                    f"a smoothing strength of {alpha} makes no sense",
                    "Give a number from 0 to 1; 0.5 to 0.8 is usual.",
                )


def smooth_scales(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Return by what each channel is divided, float32 [K]: inputs^alpha / weights^(1 - alpha).

    inputs, weights: the largest magnitudes of the input channels and of the weight's columns.
    A channel that never carries anything is not scaled.
    """
    sizes = inputs.float().clamp(min=SMALLEST)
    scales = sizes**alpha / weights.float().clamp(min=SMALLEST) ** (1 - alpha)
    scales = scales.clamp(min=SMALLEST)
    return torch.where((inputs > 0) & torch.isfinite(scales), scales, torch.ones_like(scales))


def smooth_attention(
    block: DecoderBlock,
    inputs: Tensor,
    attended: Tensor,
    options: SmoothQuantOptions,
    *,
    norm_dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> None:
    """Smooth what q, k and v of a block read, and what o reads, in place.

    inputs, attended: the largest magnitudes, [C] of what q, k and v read, [H * D] of what o reads.
    Query heads that read one key/value head share its scales. The input norm is folded in
    `norm_dtype`, and v's bias, if any, in `bias_dtype`.
    """
    attention = block.attention
    qkv = dense(attention.qkv)
    scales = smooth_scales(inputs, qkv.weight.abs().amax(dim=0), options.alpha)
    block.input_norm, scales = fold_norm(block.input_norm, scales, norm_dtype)
    output = dense(attention.output)
    heads = HeadLayout(attention.num_heads, attention.num_kv_heads, attention.head_dim)
    columns = heads.largest(output.weight.abs().amax(dim=0))
    shared = smooth_scales(heads.largest(attended), columns, options.inner_alpha)
    attention.qkv = divide_last_rows(multiply_columns(qkv, scales), shared, bias_dtype)
    attention.output = multiply_columns(output, heads.repeat(shared))


def smooth_mlp(
    block: DecoderBlock,
    inputs: Tensor,
    gated: Tensor,
    options: SmoothQuantOptions,
    *,
    norm_dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> None:
    """Smooth what gate and up of a block read, and what down reads, in place.

    inputs, gated: the largest magnitudes, [C] of what gate and up read, [K] of what down reads. The
    norm before the MLP is folded in `norm_dtype`, and up's bias, if any, in `bias_dtype`.
    """
    mlp = dense_mlp(block)
    gate_up = dense(mlp.gate_up)
    scales = smooth_scales(inputs, gate_up.weight.abs().amax(dim=0), options.alpha)
    block.post_norm, scales = fold_norm(block.post_norm, scales, norm_dtype)
    down = dense(mlp.down)
    inner = smooth_scales(gated, down.weight.abs().amax(dim=0), options.inner_alpha)
    mlp.gate_up = divide_last_rows(multiply_columns(gate_up, scales), inner, bias_dtype)
    mlp.down = multiply_columns(down, inner)
