"""A decoder as the compiled forward pass takes it: tensors and numbers, no code.

Knows nothing of files, configs or engines. The law: what is None is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmopt_kernels.native.linear_weight import NativeWeight

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")  # in the order of step.h

Projection = Sequence[NativeWeight]  # layers that share an input, their outputs side by side


@dataclass(frozen=True, slots=True)
class NormPart:
    """RMSNorm or, with `bias`, LayerNorm. gain and bias: [C] in any dtype."""

    gain: torch.Tensor
    eps: float
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One block. qkv: queries, keys, values; gate_up: the gate first; rope: an index; window: a
    token sees itself and the window - 1 before it.
    """

    input_norm: NormPart
    qkv: Projection
    query_norm: NormPart | None
    key_norm: NormPart | None
    rope: int | None
    window: int | None
    output: Projection
    attention_branch_norm: NormPart | None
    post_norm: NormPart
    gate_up: Projection
    down: Projection
    mlp_branch_norm: NormPart | None


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """The whole decoder.

    embedding: bfloat16 [V, C]; positions: bfloat16 [P, C], learned; ropes: inverse frequencies
    float32 [R / 2] and what rotated channels are multiplied with; activation: of ACTIVATIONS
    """

    embedding: torch.Tensor
    positions: torch.Tensor | None
    embedding_scale: float
    ropes: Sequence[tuple[torch.Tensor, float]]
    layers: Sequence[LayerParts]
    final_norm: NormPart
    lm_head: Projection
    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: str
    gated: bool
    attention_scale: float
    attention_soft_cap: float | None
    logit_soft_cap: float | None
