"""A decoder on the compiled forward pass: which decoders it takes, and when it is used.

Knows nothing of requests or scheduling. The laws: it computes what the decoder's own operations
compute, up to the rounding of activations to bfloat16, which it leaves out between operations; and
a decoder with a part that it lacks runs as before, which is said once.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch

from llmopt.layers.linear import DenseLinear, Linear, SplitLinear
from llmopt.layers.native_linear import NativeLinear, library_for
from llmopt.layers.norm import HeadNorm, LayerNorm, RMSNorm, unchanged
from llmopt.models.mlp import MLP
from llmopt_kernels.native.library import NativeLibrary
from llmopt_kernels.native.linear_weight import NativeWeight
from llmopt_kernels.native_step.native import CacheAddresses, LayerKV, NativeStep, StepProfile
from llmopt_kernels.native_step.parts import DecoderParts, LayerParts, NormPart
from llmopt_kernels.paged_attention import AttentionMetadata
from llmopt_kernels.store_kv import KVCache

if TYPE_CHECKING:
    from llmopt.models.decoder import Decoder, DecoderBlock, KVTensors

MAX_MATRIX_ROWS = 24  # of logits: beyond, torch multiplies faster with a bfloat16 matrix
_MAX_HEAD_DIM = 512
_ACTIVATIONS = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


class UnsupportedPartError(Exception):
    """The compiled forward pass lacks a part; the message names it."""


class NativeForward:
    """The compiled forward pass of one decoder. `profile`: what its calls are counted in."""

    def __init__(self, library: NativeLibrary, parts: DecoderParts) -> None:
        self.profile: StepProfile | None = None
        self._step = NativeStep(library, parts)
        self._max_rows = MAX_MATRIX_ROWS if any(map(_is_matrix, parts.lm_head)) else None
        self._addresses: CacheAddresses | None = None

    def takes(self, kv_cache: "KVTensors | None") -> bool:
        """Whether steps with this cache are computed here."""
        return kv_cache is None or self._addresses_of(kv_cache) is not None

    def takes_rows(self, num_rows: int) -> bool:
        """Whether the logits of so many rows are faster here than on torch."""
        return self._max_rows is None or num_rows <= self._max_rows

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_cache: "KVTensors | None",
    ) -> torch.Tensor:
        """As `Decoder.forward` of what `takes` takes, but float32 [T, C]."""
        caches = None if kv_cache is None else self._addresses_of(kv_cache)
        threads = torch.get_num_threads()
        return self._step.forward(input_ids, positions, metadata, caches, threads, self.profile)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `Decoder.compute_logits`, but float32 [R, V]."""
        return self._step.logits(hidden, torch.get_num_threads(), self.profile)

    def _addresses_of(self, kv_cache: "KVTensors") -> CacheAddresses | None:
        """Where the caches are, if all are of bfloat16; looked up once for the same caches."""
        if self._addresses is None or not self._addresses.are_of(kv_cache):
            plain = plain_caches(kv_cache)
            self._addresses = None if plain is None else CacheAddresses(plain)
        return self._addresses


def make_native_forward(decoder: "Decoder") -> NativeForward | None:
    """The compiled forward pass of a decoder, or None where it is to run on torch."""
    library = library_for(decoder.dtype, decoder.device)
    if library is None:
        return None
    try:
        return NativeForward(library, decoder_parts(decoder))
    except UnsupportedPartError as error:
        print(
            f"llmopt: this model runs operation by operation: no compiled forward pass {error}.",
            file=sys.stderr,
        )
        return None


def plain_caches(kv_cache: "KVTensors") -> Sequence[LayerKV] | None:
    """The caches, if all are contiguous bfloat16."""

    plain = [(key, value) for key, value in kv_cache if _is_plain(key) and _is_plain(value)]
    return plain if len(plain) == len(kv_cache) else None


def _is_plain(cache: KVCache) -> TypeGuard[torch.Tensor]:
    if not isinstance(cache, torch.Tensor):
        return False
    return cache.dtype is torch.bfloat16 and cache.is_contiguous()


def decoder_parts(decoder: "Decoder") -> DecoderParts:
    """What the compiled forward pass computes with. Raises UnsupportedPartError."""
    config = decoder.config
    scale = torch.tensor(config.embedding_scale or 1.0, dtype=decoder.dtype)
    if config.head_dim > _MAX_HEAD_DIM:
        raise UnsupportedPartError(f"for heads of {config.head_dim} channels")
    most_rotated = max((2 * len(frequencies) for frequencies, _ in decoder.frequencies), default=0)
    if most_rotated > config.head_dim:  # compiled code would write behind a head
        raise UnsupportedPartError(f"rotates {most_rotated} of {config.head_dim} channels")
    return DecoderParts(
        embedding=_table(decoder.embedding),
        positions=None
        if decoder.position_embedding is None
        else _table(decoder.position_embedding),
        embedding_scale=scale.item(),
        ropes=decoder.frequencies,
        layers=[_layer(block) for block in decoder.blocks],
        final_norm=_norm(decoder.final_norm),
        lm_head=_weights(decoder.lm_head),
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        activation=_ACTIVATIONS[config.activation],
        gated=config.gated,
        attention_scale=config.attention_scale,
        attention_soft_cap=config.attention_soft_cap,
        logit_soft_cap=config.logit_soft_cap,
    )


def _layer(block: "DecoderBlock") -> LayerParts:
    attention, mlp = block.attention, block.mlp
    if not isinstance(mlp, MLP):
        raise UnsupportedPartError("has experts")
    query_norm, key_norm = _head_norms(attention.head_norm)
    return LayerParts(
        input_norm=_norm(block.input_norm),
        qkv=_weights(attention.qkv),
        query_norm=query_norm,
        key_norm=key_norm,
        rope=attention.rope,
        window=attention.window,
        output=_weights(attention.output),
        attention_branch_norm=_optional_norm(block.attention_branch_norm),
        post_norm=_norm(block.post_norm),
        gate_up=_weights(mlp.gate_up),
        down=_weights(mlp.down),
        mlp_branch_norm=_optional_norm(block.mlp_branch_norm),
    )


def _weights(linear: Linear) -> tuple[NativeWeight, ...]:
    if isinstance(linear, SplitLinear):
        return tuple(weight for part in linear.parts for weight in _weights(part))
    if isinstance(linear, NativeLinear):
        return (linear.weight,)
    if isinstance(linear, DenseLinear) and linear.rows is not None:
        return (linear.rows.weight,)
    raise UnsupportedPartError(f"takes layers of the kernel {linear.kernel}")


def _norm(norm: Callable[[torch.Tensor], torch.Tensor]) -> NormPart:
    match norm:
        case RMSNorm():
            return NormPart(norm.gain, norm.eps)
        case LayerNorm():
            return NormPart(norm.weight, norm.eps, norm.bias)
        case _:
            raise UnsupportedPartError(f"has the norm {norm}")


def _optional_norm(norm: Callable[[torch.Tensor], torch.Tensor]) -> NormPart | None:
    return None if norm is unchanged else _norm(norm)


def _head_norms(
    norm: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[NormPart | None, NormPart | None]:
    if norm is unchanged:
        return None, None
    if not isinstance(norm, HeadNorm):
        raise UnsupportedPartError(f"has the norm {norm}")
    return _norm(norm.query), _norm(norm.key)


def _table(rows: torch.Tensor) -> torch.Tensor:
    if rows.dtype is not torch.bfloat16 or not rows.is_contiguous():
        raise UnsupportedPartError(f"takes embeddings in {rows.dtype}")
    return rows


def _is_matrix(weight: NativeWeight) -> bool:
    """Whether the weight is a plain bfloat16 matrix, which torch can multiply with, too."""
    return weight.tensors["data"].dtype is torch.bfloat16
