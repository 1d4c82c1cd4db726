"""The calls that a step of a decoder consists of, and the work that each has to do.

Knows nothing about engines, loads or clocks. The law: the calls are leaves, so that no time is
counted twice.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmopt.engine.step_histogram import num_attended
from llmopt.layers.linear import Linear
from llmopt.layers.norm import unchanged
from llmopt.models import decoder as decoder_module
from llmopt.models import mlp as mlp_module
from llmopt.models.decoder import Decoder, DecoderBlock
from llmopt.models.mlp import MLP
from llmopt_kernels.store_kv import KVCache, cache_tensors

Function = Callable[..., Any]
Work = Callable[[Function, tuple[Any, ...], dict[str, Any], Any], tuple[float, float]]

_NORMS = ("input_norm", "attention_branch_norm", "post_norm", "mlp_branch_norm")


@dataclass(frozen=True, slots=True)
class Call:
    """One callable of a model: an attribute of an object, or a function that its module uses.

    `work`: from the function, its arguments and its result to the bytes that it must move and the
    FLOPs that it must compute.
    """

    owner: object
    attribute: str
    name: str
    work: Work
    kernel: str | None = None


def calls_of(model: Decoder) -> list[Call]:
    """All calls of the model's steps, in no order that matters."""
    calls = [
        Call(model, "embed", "embedding", _rows_out),
        Call(model, "rotary", "rope tables", _tensors),
        Call(model, "final_norm", "norms", _tensors),
        _linear(model, "lm_head", "lm_head"),
        Call(decoder_module, "apply_rotary", "rope", _tensors),
        Call(decoder_module, "rotary_store_kv", "rope, KV store", _stored),
        Call(decoder_module, "paged_attention", "attention", _attention),
        Call(mlp_module, "route", "routing", _tensors),
    ]
    for block in model.blocks:
        calls += _calls_of_block(block)
    return [call for call in calls if getattr(call.owner, call.attribute) is not unchanged]


def _calls_of_block(block: DecoderBlock) -> Iterator[Call]:
    for norm in _NORMS:
        yield Call(block, norm, "norms", _tensors)
    yield Call(block.attention, "head_norm", "norms", _tensors)
    yield _linear(block.attention, "qkv", "qkv")
    yield _linear(block.attention, "output", "output")
    mlps: Sequence[MLP] = (block.mlp,) if isinstance(block.mlp, MLP) else block.mlp.experts
    for mlp in mlps:
        yield _linear(mlp, "gate_up", "gate_up")
        yield Call(mlp, "activation", "activation", _tensors)
        yield _linear(mlp, "down", "down")
    if not isinstance(block.mlp, MLP):
        yield _linear(block.mlp, "router", "routing")


def _linear(owner: object, attribute: str, name: str) -> Call:
    linear: Linear = getattr(owner, attribute)

    def work(
        _: Function, args: tuple[Any, ...], __: dict[str, Any], ___: Any
    ) -> tuple[float, float]:
        return linear.weight_bytes, 2.0 * len(args[0]) * linear.in_features * linear.out_features

    return Call(owner, attribute, name, work, linear.kernel)


def _tensors(
    _: Function, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[float, float]:
    """Every tensor that goes in is read, and every one that comes out is written."""
    return float(_num_bytes((*args, *kwargs.values(), result))), 0.0


def _rows_out(
    _: Function, __: tuple[Any, ...], ___: dict[str, Any], result: torch.Tensor
) -> tuple[float, float]:
    """Rows of a table are read and written."""
    return 2.0 * result.nbytes, 0.0


def _stored(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], result: torch.Tensor
) -> tuple[float, float]:
    """Heads, values and tables are read, queries written, and keys and values as the cache has
    them.
    """
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    read = _num_bytes((given["heads"], given["value"], given["tables"]))
    slot_bytes = _slot_bytes(given["key_cache"]) + _slot_bytes(given["value_cache"])
    return read + result.nbytes + len(given["value"]) * slot_bytes, 0.0


def _attention(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], result: torch.Tensor
) -> tuple[float, float]:
    """Each request's visible keys and values are read once; 4 D FLOPs a head, token and key."""
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    query, metadata = given["query"], given["metadata"]
    window = metadata.visible_window(given.get("window"))
    if window is not None:
        window += metadata.num_sinks
    pairs = seen = 0
    for num_new, length in zip(metadata.query_lens, metadata.seq_lens, strict=True):
        pairs += num_attended(length, window) - num_attended(length - num_new, window)
        seen += length if window is None else min(length, window + num_new - 1)
    if metadata.block_tables is None:
        num_bytes = given["key"].nbytes + given["value"].nbytes
    else:
        num_bytes = seen * (_slot_bytes(given["key"]) + _slot_bytes(given["value"]))
    _, num_heads, head_dim = query.shape
    return query.nbytes + num_bytes + result.nbytes, 4.0 * num_heads * head_dim * pairs


def _slot_bytes(cache: KVCache) -> float:
    """Bytes of one token in a cache [N, S, ...]."""
    tensors = cache_tensors(cache)
    num_slots = tensors[0].shape[0] * tensors[0].shape[1]
    return sum(tensor.nbytes for tensor in tensors) / num_slots


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_num_bytes, value)) if isinstance(value, tuple | list) else 0
