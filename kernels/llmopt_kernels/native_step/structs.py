"""The structs of step.h, field by field, and how parts fill them.

Knows nothing of batches' origin or of models. The law: whoever holds a struct holds what it points
to; `Memory` collects that.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llmopt_kernels.native_step.parts import (
    ACTIVATIONS,
    DecoderParts,
    LayerParts,
    NormPart,
    Projection,
)

OPERATIONS = (
    "embedding",
    "norms",
    "qkv",
    "rope and KV store",
    "attention",
    "attention merge",
    "attention output",
    "gate and up",
    "activation",
    "down",
    "output head",
)
_NO_NORM, _RMS_NORM, _LAYER_NORM = range(3)
_P, _I, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


class NormStruct(ctypes.Structure):
    """`Norm`."""

    _fields_ = [("gain", _P), ("bias", _P), ("kind", _I), ("eps", _F)]


class ProjectionStruct(ctypes.Structure):
    """`Projection`."""

    _fields_ = [("parts", _P), ("num_parts", _I), ("out_features", _I)]


class RopeStruct(ctypes.Structure):
    """`Rope`."""

    _fields_ = [("inverse_frequencies", _P), ("num_pairs", _I), ("scale", _F)]


class LayerStruct(ctypes.Structure):
    """`Layer`."""

    _fields_ = [
        ("input_norm", NormStruct),
        ("attention_branch_norm", NormStruct),
        ("post_norm", NormStruct),
        ("mlp_branch_norm", NormStruct),
        ("query_norm", NormStruct),
        ("key_norm", NormStruct),
        ("qkv", ProjectionStruct),
        ("output", ProjectionStruct),
        ("gate_up", ProjectionStruct),
        ("down", ProjectionStruct),
        ("rope", _I),
        ("window", _I),
    ]


class ModelStruct(ctypes.Structure):
    """`Model`."""

    _fields_ = [
        ("layers", _P),
        ("ropes", _P),
        ("embedding", _P),
        ("positions", _P),
        ("final_norm", NormStruct),
        ("lm_head", ProjectionStruct),
        ("num_layers", _I),
        ("num_ropes", _I),
        ("vocab_size", _I),
        ("num_positions", _I),
        ("hidden_size", _I),
        ("inner_size", _I),
        ("num_heads", _I),
        ("num_kv_heads", _I),
        ("head_dim", _I),
        ("activation", _I),
        ("gated", _I),
        ("embedding_scale", _F),
        ("attention_scale", _F),
        ("attention_soft_cap", _F),
        ("logit_soft_cap", _F),
    ]


class BlockGroupStruct(ctypes.Structure):
    """`BlockGroup`."""

    _fields_ = [
        ("slots", _P),
        ("block_tables", _P),
        ("table_stride", ctypes.c_int64),
        ("block_size", _I),
        ("window", _I),
        ("num_sinks", _I),
    ]


class BatchStruct(ctypes.Structure):
    """`Batch`."""

    _fields_ = [
        ("token_ids", _P),
        ("positions", _P),
        ("query_lens", _P),
        ("seq_lens", _P),
        ("keys", _P),
        ("values", _P),
        ("groups", _P),
        ("group_of_layer", _P),
        ("num_tokens", _I),
        ("num_requests", _I),
    ]


@dataclass(slots=True)
class Memory:
    """What structs point to."""

    held: list[object] = field(default_factory=list)

    def floats(self, tensor: torch.Tensor) -> int:
        """Address of a float32 copy."""
        copy = tensor.detach().float().contiguous()
        self.held.append(copy)
        return copy.data_ptr()

    def tensor(self, tensor: torch.Tensor) -> int:
        """Address of the tensor itself."""
        assert tensor.is_contiguous(), "compiled code reads rows one behind the other"
        self.held.append(tensor)
        return tensor.data_ptr()

    def array(self, array: "ctypes.Array[Any]") -> int:
        """Address of an array."""
        self.held.append(array)
        return ctypes.addressof(array)


def model_struct(parts: DecoderParts, memory: Memory) -> ModelStruct:
    """`Model` of these parts; `memory` has to live as long as it."""
    layers = [_layer(layer, memory) for layer in parts.layers]
    ropes = [
        RopeStruct(memory.floats(frequencies), len(frequencies), scale)
        for frequencies, scale in parts.ropes
    ]
    positions = parts.positions
    return ModelStruct(
        layers=memory.array((LayerStruct * len(layers))(*layers)),
        ropes=memory.array((RopeStruct * len(ropes))(*ropes)),
        embedding=memory.tensor(parts.embedding),
        positions=None if positions is None else memory.tensor(positions),
        final_norm=_norm(parts.final_norm, memory),
        lm_head=_projection(parts.lm_head, memory),
        num_layers=len(layers),
        num_ropes=len(ropes),
        vocab_size=len(parts.embedding),
        num_positions=0 if positions is None else len(positions),
        hidden_size=parts.embedding.shape[1],
        inner_size=parts.layers[0].down[0].shape[1],
        num_heads=parts.num_heads,
        num_kv_heads=parts.num_kv_heads,
        head_dim=parts.head_dim,
        activation=ACTIVATIONS.index(parts.activation),
        gated=parts.gated,
        embedding_scale=parts.embedding_scale,
        attention_scale=parts.attention_scale,
        attention_soft_cap=parts.attention_soft_cap or 0.0,
        logit_soft_cap=parts.logit_soft_cap or 0.0,
    )


def _layer(layer: LayerParts, memory: Memory) -> LayerStruct:
    return LayerStruct(
        input_norm=_norm(layer.input_norm, memory),
        attention_branch_norm=_norm(layer.attention_branch_norm, memory),
        post_norm=_norm(layer.post_norm, memory),
        mlp_branch_norm=_norm(layer.mlp_branch_norm, memory),
        query_norm=_norm(layer.query_norm, memory),
        key_norm=_norm(layer.key_norm, memory),
        qkv=_projection(layer.qkv, memory),
        output=_projection(layer.output, memory),
        gate_up=_projection(layer.gate_up, memory),
        down=_projection(layer.down, memory),
        rope=-1 if layer.rope is None else layer.rope,
        window=layer.window or 0,
    )


def _norm(norm: NormPart | None, memory: Memory) -> NormStruct:
    if norm is None:
        return NormStruct(kind=_NO_NORM)
    gain = memory.floats(norm.gain)
    if norm.bias is None:
        return NormStruct(gain, None, _RMS_NORM, norm.eps)
    return NormStruct(gain, memory.floats(norm.bias), _LAYER_NORM, norm.eps)


def _projection(parts: Projection, memory: Memory) -> ProjectionStruct:
    memory.held.extend(parts)
    addresses = [ctypes.addressof(part.struct) for part in parts]
    array = memory.array((ctypes.c_void_p * len(parts))(*addresses))
    return ProjectionStruct(array, len(parts), sum(part.shape[0] for part in parts))


def integers(values: Sequence[int]) -> "ctypes.Array[ctypes.c_int32]":
    """int32 array."""
    return (ctypes.c_int32 * len(values))(*values)


__all__ = [
    "OPERATIONS",
    "BatchStruct",
    "BlockGroupStruct",
    "Memory",
    "ModelStruct",
    "integers",
    "model_struct",
]
