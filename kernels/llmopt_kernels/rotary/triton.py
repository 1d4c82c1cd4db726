"""Rotary position embedding on a GPU: alone, or with the new keys and values stored in one launch.

A program takes some heads of one token. `reference.py` has the formula, `store_kv` the forms of a
cache. The law: angles are those of the tables; a rotated key is rounded to the activations' dtype
before it is stored, as when it is stored by itself.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.aot_arguments import case_of_launch
from llmopt_kernels.store_kv.cache import KVCache
from llmopt_kernels.store_kv.triton import (
    DEFAULT_CONFIG,
    cache_arguments,
    candidates,
    heads_per_program,
    int8_scales,
    meta_cache,
    shape_class,
    store_heads,
    stored,
    tuned_config,
)
from llmopt_kernels.token_rounding import largest_magnitudes
from llmopt_kernels.tuning import Config

Tables = tuple[torch.Tensor, torch.Tensor]


@triton.jit
def _rotated(
    x, cos, sin, heads, is_head, head_stride, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    """The two halves of the rotated channels of some heads, and a mask [heads, BLOCK_HALF]."""
    columns = tl.arange(0, BLOCK_HALF)
    # The tables say everything twice; of the sine, the second half has its sign.
    c = tl.load(cos + columns, mask=columns < HALF, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + HALF + columns, mask=columns < HALF, other=0.0).to(tl.float32)[None, :]
    mask = is_head[:, None] & (columns < HALF)[None, :]
    pointers = x + heads[:, None] * head_stride + columns[None, :]
    first = tl.load(pointers, mask=mask, other=0.0)
    second = tl.load(pointers + HALF, mask=mask, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * c - b * s).to(first.dtype), (b * c + a * s).to(first.dtype), mask


@triton.jit
def _rest(x, heads, is_head, head_stride, NUM_ROTATED: tl.constexpr, HEAD_DIM: tl.constexpr,
          BLOCK_REST: tl.constexpr):  # fmt: skip
    """The channels that stay as they are, and a mask [heads, BLOCK_REST]."""
    columns = tl.arange(0, BLOCK_REST)
    mask = is_head[:, None] & (columns < HEAD_DIM - NUM_ROTATED)[None, :]
    pointers = x + NUM_ROTATED + heads[:, None] * head_stride + columns[None, :]
    return tl.load(pointers, mask=mask, other=0.0), mask


@triton.jit
def _rotate_heads(
    x, out, cos, sin, heads, is_head, head_stride, out_head_stride,
    HEAD_DIM: tl.constexpr, NUM_ROTATED: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Some heads of one token from x to out, which may be x."""
    HALF: tl.constexpr = NUM_ROTATED // 2
    first, second, mask = _rotated(x, cos, sin, heads, is_head, head_stride, HALF, BLOCK_HALF)
    pointers = out + heads[:, None] * out_head_stride + tl.arange(0, BLOCK_HALF)[None, :]
    tl.store(pointers, first, mask=mask)
    tl.store(pointers + HALF, second, mask=mask)
    if NUM_ROTATED < HEAD_DIM:
        rest, mask = _rest(x, heads, is_head, head_stride, NUM_ROTATED, HEAD_DIM, BLOCK_REST)
        columns = NUM_ROTATED + tl.arange(0, BLOCK_REST)
        tl.store(out + heads[:, None] * out_head_stride + columns[None, :], rest, mask=mask)


@triton.jit
def _rotate_and_store_heads(
    x, rows, scales, cos, sin, heads, is_head, new_head_stride, head_stride,
    HEAD_DIM: tl.constexpr, NUM_ROTATED: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Rotate some key heads of one token, and store them as `store_heads` would."""
    HALF: tl.constexpr = NUM_ROTATED // 2
    first, second, mask = _rotated(x, cos, sin, heads, is_head, new_head_stride, HALF, BLOCK_HALF)
    rest, rest_mask = first, mask
    if NUM_ROTATED < HEAD_DIM:
        rest, rest_mask = _rest(
            x, heads, is_head, new_head_stride, NUM_ROTATED, HEAD_DIM, BLOCK_REST
        )
    quotients = None
    if scales is not None:
        largest = tl.maximum(
            largest_magnitudes(first.to(tl.float32)),
            largest_magnitudes(second.to(tl.float32)),
            propagate_nan=tl.PropagateNan.ALL,
        )
        if NUM_ROTATED < HEAD_DIM:
            of_rest = largest_magnitudes(rest.to(tl.float32))
            largest = tl.maximum(largest, of_rest, propagate_nan=tl.PropagateNan.ALL)
        quotients = int8_scales(largest)
        tl.store(scales + heads, quotients, mask=is_head)
    pointers = rows + heads[:, None] * head_stride + tl.arange(0, BLOCK_HALF)[None, :]
    tl.store(pointers, stored(first, quotients, rows), mask=mask)
    tl.store(pointers + HALF, stored(second, quotients, rows), mask=mask)
    if NUM_ROTATED < HEAD_DIM:
        columns = NUM_ROTATED + tl.arange(0, BLOCK_REST)
        pointers = rows + heads[:, None] * head_stride + columns[None, :]
        tl.store(pointers, stored(rest, quotients, rows), mask=rest_mask)


@triton.jit
def _rotate(
    x, out, cos, sin, stride, head_stride, out_stride, out_head_stride, table_stride,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, NUM_ROTATED: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """x [T, H, D] -> out [T, H, D]; the grid is (T, H / BLOCK_H)."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    _rotate_heads(
        x + token * stride, out + token * out_stride, cos + token * table_stride,
        sin + token * table_stride, heads, heads < NUM_HEADS, head_stride, out_head_stride,
        HEAD_DIM, NUM_ROTATED, BLOCK_HALF, BLOCK_REST,
    )  # fmt: skip


@triton.jit
def _rotate_store(
    x, value, query, cos, sin, key_rows, value_rows, key_scales, value_scales, slots,
    stride, head_stride_x, value_stride, value_head_stride, table_stride,
    row_stride, head_stride, scale_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    NUM_ROTATED: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """x [T, H + KH, D]: query heads are rotated into query [T, H, D], key heads into the cache;
    value [T, KH, D] is stored. The grid is (T, H / BLOCK_H + 2 * KH / BLOCK_H).
    """
    QUERY_TILES: tl.constexpr = (NUM_HEADS + BLOCK_H - 1) // BLOCK_H
    KV_TILES: tl.constexpr = (NUM_KV_HEADS + BLOCK_H - 1) // BLOCK_H
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = tl.load(slots + token)
    cos += token * table_stride
    sin += token * table_stride
    if tile < QUERY_TILES:
        heads = tile * BLOCK_H + tl.arange(0, BLOCK_H)
        _rotate_heads(
            x + token * stride, query + token * (NUM_HEADS * HEAD_DIM), cos, sin,
            heads, heads < NUM_HEADS, head_stride_x, HEAD_DIM,
            HEAD_DIM, NUM_ROTATED, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
    elif tile < QUERY_TILES + KV_TILES:
        heads = (tile - QUERY_TILES) * BLOCK_H + tl.arange(0, BLOCK_H)
        _rotate_and_store_heads(
            x + token * stride + NUM_HEADS * head_stride_x, key_rows + slot * row_stride,
            None if key_scales is None else key_scales + slot * scale_stride,
            cos, sin, heads, heads < NUM_KV_HEADS, head_stride_x, head_stride,
            HEAD_DIM, NUM_ROTATED, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
    else:
        heads = (tile - QUERY_TILES - KV_TILES) * BLOCK_H + tl.arange(0, BLOCK_H)
        store_heads(
            value + token * value_stride, value_rows + slot * row_stride,
            None if value_scales is None else value_scales + slot * scale_stride,
            heads, heads < NUM_KV_HEADS, value_head_stride, head_stride, HEAD_DIM, BLOCK_D,
        )  # fmt: skip


def rotary_triton(
    x: torch.Tensor,
    tables: Tables,
    out: torch.Tensor | None = None,
    *,
    config: Config | None = None,
) -> torch.Tensor:
    """Rotate the first R channels of x [T, H, D] into `out`, which may be x; None: a new tensor.

    tables: as `rotary_tables` makes them; config None: the tuned one.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    arguments = _rotary_arguments(x, tables, out)
    config = config or tuned_config("rotary", triton.next_power_of_2(x.shape[2]))
    block_h = heads_per_program(x.shape[1], triton.next_power_of_2(x.shape[2]), config)
    grid = (len(x), triton.cdiv(x.shape[1], block_h))
    _rotate[grid](**arguments, BLOCK_H=block_h, num_warps=config["num_warps"])
    return out


def rotary_store_kv_triton(
    heads: torch.Tensor,
    num_heads: int,
    value: torch.Tensor,
    tables: Tables,
    key_cache: KVCache,
    value_cache: KVCache,
    slots: torch.Tensor,
    *,
    config: Config | None = None,
) -> torch.Tensor:
    """Same signature and result as `rotary_store_kv_reference`; config None: the tuned one."""
    shape = (len(heads), num_heads, heads.shape[2])
    query = torch.empty(shape, dtype=heads.dtype, device=heads.device)
    arguments = _store_arguments(heads, value, query, tables, key_cache, value_cache, slots)
    config = config or tuned_config("rotary_store_kv", arguments["BLOCK_D"])
    num_kv_heads = arguments["NUM_KV_HEADS"]
    block_h = heads_per_program(max(num_heads, num_kv_heads), arguments["BLOCK_D"], config)
    tiles = triton.cdiv(num_heads, block_h) + 2 * triton.cdiv(num_kv_heads, block_h)
    _rotate_store[(len(heads), tiles)](**arguments, BLOCK_H=block_h, num_warps=config["num_warps"])
    return query


def _rotary_arguments(x: torch.Tensor, tables: Tables, out: torch.Tensor) -> dict[str, Any]:
    assert x.stride(-1) == out.stride(-1) == 1, "channels side by side"
    return {
        "x": x,
        "out": out,
        "stride": x.stride(0),
        "head_stride": x.stride(1),
        "out_stride": out.stride(0),
        "out_head_stride": out.stride(1),
        "NUM_HEADS": x.shape[1],
        "HEAD_DIM": x.shape[2],
        **_table_arguments(tables, x.shape[2]),
    }


def _store_arguments(
    heads: torch.Tensor,
    value: torch.Tensor,
    query: torch.Tensor,
    tables: Tables,
    key_cache: KVCache,
    value_cache: KVCache,
    slots: torch.Tensor,
) -> dict[str, Any]:
    assert heads.stride(-1) == value.stride(-1) == 1, "channels side by side"
    return {
        "x": heads,
        "value": value,
        "query": query,
        "slots": slots,
        "stride": heads.stride(0),
        "head_stride_x": heads.stride(1),
        "value_stride": value.stride(0),
        "value_head_stride": value.stride(1),
        **cache_arguments(key_cache, value_cache),
        "NUM_HEADS": query.shape[1],
        "NUM_KV_HEADS": value.shape[1],
        "HEAD_DIM": value.shape[2],
        "BLOCK_D": triton.next_power_of_2(value.shape[2]),
        **_table_arguments(tables, value.shape[2]),
    }


def _table_arguments(tables: Tables, head_dim: int) -> dict[str, Any]:
    cos, sin = tables
    num_rotated = cos.shape[-1]
    assert cos.stride(-1) == sin.stride(-1) == 1, "channels side by side"
    assert cos.stride(0) == sin.stride(0), "tables of one shape"
    return {
        "cos": cos,
        "sin": sin,
        "table_stride": cos.stride(0),
        "NUM_ROTATED": num_rotated,
        "BLOCK_HALF": triton.next_power_of_2(num_rotated // 2),
        "BLOCK_REST": triton.next_power_of_2(max(head_dim - num_rotated, 1)),
    }


def aot_signatures() -> list[AotCase]:
    """An 8B model's heads, and heads of which only some channels are rotated."""
    return list(_aot_cases())


def _aot_cases() -> Iterator[AotCase]:
    for head_dim, num_rotated, num_kv_heads in [(128, 128, 8), (80, 32, 32)]:
        heads = torch.empty(64, 32 + num_kv_heads, head_dim, dtype=torch.bfloat16, device="meta")
        table = torch.empty(64, 1, num_rotated, dtype=torch.bfloat16, device="meta")
        block_d = triton.next_power_of_2(head_dim)
        block_h = heads_per_program(32, block_d, DEFAULT_CONFIG)
        yield case_of_launch(
            f"rotary d{head_dim}",
            _rotate,
            {**_rotary_arguments(heads, (table, table), heads), "BLOCK_H": block_h},
        )
        for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.int8):
            cache = meta_cache(dtype, num_kv_heads, head_dim)
            arguments = _store_arguments(
                heads,
                heads[:, 32:],
                torch.empty(64, 32, head_dim, dtype=torch.bfloat16, device="meta"),
                (table, table),
                cache,
                cache,
                torch.empty(64, dtype=torch.int64, device="meta"),
            )
            form = str(dtype).removeprefix("torch.")
            yield case_of_launch(
                f"rotary_store_kv d{head_dim} {form}",
                _rotate_store,
                {**arguments, "BLOCK_H": block_h},
            )


__all__ = ["aot_signatures", "candidates", "rotary_store_kv_triton", "rotary_triton", "shape_class"]
