"""What the kernels of `triton.py` are given, from the tensors of a call.

Knows nothing of Triton. The law: one function makes the arguments of a launch and of a compilation
ahead of time, so what was compiled is what runs; nothing here reads a tensor's values.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from llmopt_kernels.paged_attention.configs import shape_class
from llmopt_kernels.paged_attention.launch import (
    MAX_SPLITS,
    MIN_SPLIT_TOKENS,
    Launch,
    next_power_of_two,
)
from llmopt_kernels.paged_attention.metadata import AttentionMetadata
from llmopt_kernels.store_kv.cache import Int8Cache, KVCache
from llmopt_kernels.tuning import Config

_MIN_COLUMNS = 16  # of a matrix product
_MERGE_COLUMNS = 64


def rows_of(cache: KVCache) -> torch.Tensor:
    """The keys or values of a cache, as they are stored."""
    return cache.codes if isinstance(cache, Int8Cache) else cache


def padded_head_dim(head_dim: int) -> int:
    """Columns of a tile, a power of two."""
    return max(next_power_of_two(head_dim), _MIN_COLUMNS)


def class_of(query: torch.Tensor, key: KVCache, *, small: bool) -> str:
    """The shape class of launches for these tensors, with small or large tiles."""
    return shape_class(
        small=small,
        head_dim=padded_head_dim(query.shape[-1]),
        query_bits=8 * query.dtype.itemsize,
        kv_bits=8 * rows_of(key).dtype.itemsize,
    )


def attend_arguments(
    query: torch.Tensor,
    key: KVCache,
    value: KVCache,
    out: torch.Tensor,
    metadata: AttentionMetadata,
    launch: Launch,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    config: Config,
) -> dict[str, Any]:
    """The arguments of `_attend` by name; constexprs have capital letters.

    out: [T, H, D], of which the launch computes its tokens; where keys are split, into `parts` and
    `log_masses`, which are made here. window: as the metadata and the layer limit it.
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = rows_of(key).shape[-2]
    lengths = metadata.device_lengths(query.device)
    first, last = launch.first_request, launch.first_request + launch.num_requests
    tables, key_scales = metadata.block_tables, _scales_of(key)
    parts, log_masses = _tokens(out, launch), None
    if launch.num_splits > 1:
        rows = (launch.num_splits, launch.num_tokens, num_heads)
        parts = query.new_empty((*rows, head_dim), dtype=torch.float32)
        log_masses = query.new_empty(rows, dtype=torch.float32)
    # tanh(x) = 1 - 2 / (exp(2x) + 1), in powers of two.
    cap_scale = 0.0 if soft_cap is None else 2 * math.log2(math.e) * scale / soft_cap
    score_scale = math.log2(math.e) * (scale if soft_cap is None else soft_cap)
    return {
        "query": query,
        "key": rows_of(key),
        "value": rows_of(value),
        "key_scales": key_scales,
        "value_scales": _scales_of(value),
        "block_tables": None if tables is None else tables[first:last],
        "cu_seqlens_q": lengths.cu_seqlens_q[first : last + 1],
        "seq_lens": lengths.seq_lens[first:last],
        "out": parts,
        "log_masses": log_masses,
        "num_requests": launch.num_requests,
        "first_token": launch.first_token,
        "num_tokens": launch.num_tokens,
        "num_splits": launch.num_splits,
        "window": window or 0,
        "num_sinks": metadata.num_sinks,
        "cap_scale": cap_scale,
        "score_scale": score_scale,
        "query_stride": query.stride(0),
        "query_head_stride": query.stride(1),
        "table_stride": 0 if tables is None else tables.stride(0),
        **_strides("key", rows_of(key)),
        **_strides("value", rows_of(value)),
        "scale_block_stride": 0 if key_scales is None else key_scales.stride(0),
        "scale_stride": 0 if key_scales is None else key_scales.stride(1),
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": num_heads // num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": launch.tile_rows,
        "BLOCK_N": config["BLOCK_N"],
        "BLOCK_SIZE": metadata.block_size,
        "MIN_STEPS": -(-MIN_SPLIT_TOKENS // config["BLOCK_N"]),
        "ONE_TILE": launch.one_tile,
        "WINDOWED": window is not None,
        "SOFT_CAP": soft_cap is not None,
    }


def merge_arguments(
    arguments: Mapping[str, Any], out: torch.Tensor, launch: Launch
) -> dict[str, Any]:
    """The arguments of `_merge` behind an `_attend` that had `arguments`."""
    return {
        "parts": arguments["out"],
        "log_masses": arguments["log_masses"],
        "out": _tokens(out, launch),
        "num_rows": launch.num_tokens * out.shape[1],
        "num_splits": launch.num_splits,
        "HEAD_DIM": out.shape[2],
        "COLUMNS": min(padded_head_dim(out.shape[2]), _MERGE_COLUMNS),
        "MAX_SPLITS": MAX_SPLITS,
    }


def _tokens(out: torch.Tensor, launch: Launch) -> torch.Tensor:
    """The launch's tokens of out [T, H, D]."""
    return out[launch.first_token : launch.first_token + launch.num_tokens]


def _scales_of(cache: KVCache) -> torch.Tensor | None:
    """[N, S, KH]; where that can be, as words of two heads, int32 [N, S, KH / 2]."""
    if not isinstance(cache, Int8Cache):
        return None
    paired = cache.scales.shape[2] % 2 == 0
    return cache.scales.view(torch.int32) if paired else cache.scales


def _strides(name: str, rows: torch.Tensor) -> dict[str, int]:
    """Of rows [N, S, KH, D], or [T, KH, D] without a cache."""
    block = rows.stride(0) if rows.dim() == 4 else 0
    return {
        f"{name}_block_stride": block,
        f"{name}_stride": rows.stride(-3),
        f"{name}_head_stride": rows.stride(-2),
    }
