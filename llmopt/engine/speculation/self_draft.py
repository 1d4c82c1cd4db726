"""Drafts that are made of the model itself: rounded to few bits, or cut after its first layers.

Knows nothing about requests or caches.
Law: what is not changed is shared with the model, so a draft costs the memory of its own layers
only.
"""

from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from llmopt.errors import UsageError
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.layers.linear import DenseLinear, Linear, make_linear
from llmopt.models.decoder import Decoder, DecoderBlock
from llmopt.models.mlp import MLP, MixtureOfExperts

_INT4 = QuantSpec(4, group_size=32, symmetric=False)
_INT8 = QuantSpec(8, group_size=None)
_CHUNK_ROWS = 4096


def quantize_copy(model: Decoder, bits: int) -> Decoder:
    """The model with its full-precision linear layers and head rounded to nearest.

    4 bits: in groups of 32 with zero points, but the head in 8 bits, because it suffers most (of
    the greedy tokens of SmolLM2 135M, 63 % were right with a head of 4 bits and 73 % with one of
    8); 8 bits: one scale per row. Layers that are quantized already, and those that do not divide
    into groups, are shared as they are. Where there is no kernel for such weights they are
    dequantized, and the copy is as slow as the model.
    """
    assert bits in (4, 8), "there are kernels for 4 and 8 bits"
    spec = _INT4 if bits == 4 else _INT8
    blocks = [_quantize_block(block, spec, model.dtype) for block in model.blocks]
    return _with_blocks(model, blocks, _quantize(model.lm_head, _INT8, model.dtype))


def first_layers(model: Decoder, num_layers: int) -> Decoder:
    """The model's first layers with its final norm and head. Raises UsageError: it has no more."""
    if num_layers >= model.config.num_layers:
        raise UsageError(
            f"a draft of {num_layers} layers was asked for and the model has"
            f" {model.config.num_layers}",
            f"Give layers:N with an N from 1 to {model.config.num_layers - 1}.",
        )
    return _with_blocks(model, model.blocks[:num_layers], model.lm_head)


def _with_blocks(model: Decoder, blocks: list[DecoderBlock], head: Linear) -> Decoder:
    layers = model.config.layers[: len(blocks)]
    return Decoder(
        replace(model.config, num_layers=len(blocks), layers=layers),
        model.embedding,
        blocks,
        model.final_norm,
        head,
        model.frequencies,
        model.position_embedding,
    )


def _quantize_block(block: DecoderBlock, spec: QuantSpec, dtype: torch.dtype) -> DecoderBlock:
    block = copy(block)
    attention = block.attention = copy(block.attention)
    attention.qkv = _quantize(attention.qkv, spec, dtype)
    attention.output = _quantize(attention.output, spec, dtype)
    if isinstance(block.mlp, MLP):
        block.mlp = _quantize_mlp(block.mlp, spec, dtype)
    else:
        experts = [_quantize_mlp(expert, spec, dtype) for expert in block.mlp.experts]
        block.mlp = MixtureOfExperts(block.mlp.router, experts, block.mlp.facts)
    return block


def _quantize_mlp(mlp: MLP, spec: QuantSpec, dtype: torch.dtype) -> MLP:
    gate_up, down = (_quantize(linear, spec, dtype) for linear in mlp.linears)
    return MLP(gate_up, down, mlp.activation)


def _quantize(linear: Linear, spec: QuantSpec, dtype: torch.dtype) -> Linear:
    if not isinstance(linear, DenseLinear) or linear.in_features % (spec.group_size or 1):
        return linear
    rows = len(linear.weight)
    parts = [
        _round(linear.weight[first : first + _CHUNK_ROWS], spec)
        for first in range(0, rows, _CHUNK_ROWS)
    ]
    weight = QuantizedWeight(
        codes=torch.cat([codes for codes, _, _ in parts]),
        scales=torch.cat([scales for _, scales, _ in parts]),
        zeros=None if spec.symmetric else torch.cat([zeros for _, _, zeros in parts]),
        g_idx=None,
        spec=spec,
    )
    return make_linear([weight], [linear.bias], dtype=dtype, device=linear.weight.device)


def _round(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [O, K], bfloat16 scales [O, G] and zero points [O, G] on the min-max grid."""
    num_groups = spec.num_groups(weight.shape[1])
    groups = weight.float().view(len(weight), num_groups, -1)
    if spec.symmetric:
        high = groups.abs().amax(-1)
        low = -high
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / (spec.levels - 1)).to(torch.bfloat16)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    zeros = torch.full_like(scales, spec.midpoint, dtype=torch.float32)
    if not spec.symmetric:
        zeros = (-low / scales).round().clamp_(0, spec.levels - 1)
    codes = ((groups / scales[..., None]).round() + zeros[..., None]).clamp_(0, spec.levels - 1)
    return codes.view(weight.shape).to(torch.uint8), scales, zeros.to(torch.uint8)
