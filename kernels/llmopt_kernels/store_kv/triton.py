"""Writing new keys and values into the paged cache on a GPU: one launch for both.

A program takes some heads of one token, and quantizes them on the way (`cache.py` has the forms).
The law: bit for bit what `store_rows` writes: true divisions, and halves to even.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.aot_arguments import case_of_launch
from llmopt_kernels.store_kv.cache import Int8Cache, KVCache
from llmopt_kernels.token_rounding import largest_magnitudes
from llmopt_kernels.tuning import Config, launch_config

_FP8_MAX = tl.constexpr(448.0)
_SMALLEST_SCALE = tl.constexpr(torch.finfo(torch.bfloat16).tiny)
_ROUNDER = tl.constexpr(1.5 * 2**23)  # a float32 this large has no fraction left


@triton.jit
def int8_scales(largest):
    """bfloat16 scales of heads whose largest magnitudes are `largest`."""
    scales = tl.div_rn(largest, 127.0)
    scales = tl.maximum(scales, _SMALLEST_SCALE, propagate_nan=tl.PropagateNan.ALL)
    return scales.to(tl.bfloat16)


@triton.jit
def stored(x, scales, rows):
    """x [heads, columns] as the cache behind the pointer `rows` holds it; scales: of int8."""
    if rows.dtype.element_ty == tl.int8:
        codes = tl.div_rn(x.to(tl.float32), scales.to(tl.float32)[:, None])
        codes = (codes + _ROUNDER) - _ROUNDER  # halves to even
        x = tl.minimum(tl.maximum(codes, -127.0), 127.0)
    elif rows.dtype.element_ty == tl.float8e4nv:
        x = tl.maximum(x.to(tl.float32), -_FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, _FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    return x.to(rows.dtype.element_ty)


@triton.jit
def store_heads(
    new, rows, scales, heads, is_head, new_head_stride, head_stride,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store some heads of one token. new, rows, scales: pointers to the token's heads, to its row
    of the cache and to the row's scales, or None.
    """
    columns = tl.arange(0, BLOCK_D)
    mask = is_head[:, None] & (columns < HEAD_DIM)[None, :]
    x = tl.load(new + heads[:, None] * new_head_stride + columns[None, :], mask=mask, other=0.0)
    quotients = None
    if scales is not None:
        quotients = int8_scales(largest_magnitudes(x.to(tl.float32)))
        tl.store(scales + heads, quotients, mask=is_head)
    pointers = rows + heads[:, None] * head_stride + columns[None, :]
    tl.store(pointers, stored(x, quotients, rows), mask=mask)


@triton.jit
def _store(
    key, value, key_rows, value_rows, key_scales, value_scales, slots,
    key_stride, key_head_stride, value_stride, value_head_stride,
    row_stride, head_stride, scale_stride,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """key, value [T, KH, D] into rows [N * S, KH, D] of the caches; the grid is (T, 2 * KH /
    BLOCK_H).
    """
    TILES: tl.constexpr = (NUM_HEADS + BLOCK_H - 1) // BLOCK_H
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = tl.load(slots + token)
    heads = (tile % TILES) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_head = heads < NUM_HEADS
    if tile < TILES:
        store_heads(
            key + token * key_stride, key_rows + slot * row_stride,
            None if key_scales is None else key_scales + slot * scale_stride,
            heads, is_head, key_head_stride, head_stride, HEAD_DIM, BLOCK_D,
        )  # fmt: skip
    else:
        store_heads(
            value + token * value_stride, value_rows + slot * row_stride,
            None if value_scales is None else value_scales + slot * scale_stride,
            heads, is_head, value_head_stride, head_stride, HEAD_DIM, BLOCK_D,
        )  # fmt: skip


def store_kv_triton(
    key_cache: KVCache,
    value_cache: KVCache,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    *,
    config: Config | None = None,
) -> None:
    """Same signature and result as `store_keys_values_reference`; config None: the tuned one."""
    arguments = _arguments(key_cache, value_cache, key, value, slots)
    config = config or tuned_config("store_kv", arguments["BLOCK_D"])
    block_h = heads_per_program(arguments["NUM_HEADS"], arguments["BLOCK_D"], config)
    tiles = triton.cdiv(arguments["NUM_HEADS"], block_h)
    _store[(len(key), 2 * tiles)](**arguments, BLOCK_H=block_h, num_warps=config["num_warps"])


def _arguments(
    key_cache: KVCache,
    value_cache: KVCache,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
) -> dict[str, Any]:
    assert key.stride(-1) == value.stride(-1) == 1, "channels side by side"
    return {
        "key": key,
        "value": value,
        "slots": slots,
        "key_stride": key.stride(0),
        "key_head_stride": key.stride(1),
        "value_stride": value.stride(0),
        "value_head_stride": value.stride(1),
        **cache_arguments(key_cache, value_cache),
        "NUM_HEADS": key.shape[1],
        "HEAD_DIM": key.shape[2],
        "BLOCK_D": triton.next_power_of_2(key.shape[2]),
    }


def cache_arguments(key_cache: KVCache, value_cache: KVCache) -> dict[str, Any]:
    """Pointers and strides of two caches of one form and shape, as rows [N * S, KH, D]."""
    if isinstance(key_cache, Int8Cache):
        assert isinstance(value_cache, Int8Cache), "both have one form"
        keys, values = key_cache.codes, value_cache.codes
        scales = (key_cache.scales, value_cache.scales)
    else:
        assert isinstance(value_cache, torch.Tensor), "both have one form"
        keys, values, scales = key_cache, value_cache, None
    assert keys.is_contiguous(), "a slot is a row"
    assert values.is_contiguous(), "a slot is a row"
    num_heads, head_dim = keys.shape[2:]
    return {
        "key_rows": keys,
        "value_rows": values,
        "key_scales": None if scales is None else scales[0],
        "value_scales": None if scales is None else scales[1],
        "row_stride": num_heads * head_dim,
        "head_stride": head_dim,
        "scale_stride": num_heads,
    }


def shape_class(block_d: int) -> str:
    """Launches that share a configuration. block_d: the head dim as a power of two."""
    return f"d{block_d}"


def candidates(_shape_class: str) -> list[Config]:
    """What a tuner tries. ELEMENTS: of a program's tile."""
    return [
        {"ELEMENTS": elements, "num_warps": num_warps}
        for elements in (256, 512, 1024, 2048, 4096)
        for num_warps in (1, 2, 4, 8)
    ]


DEFAULT_CONFIG: Config = {"ELEMENTS": 1024, "num_warps": 4}


def tuned_config(kernel: str, block_d: int) -> Config:
    """Of this kernel or of one that stores besides."""
    return launch_config(kernel, shape_class(block_d), DEFAULT_CONFIG)


def heads_per_program(num_heads: int, block_d: int, config: Config) -> int:
    """BLOCK_H, a power of two."""
    most: int = triton.next_power_of_2(num_heads)
    return max(1, min(most, config["ELEMENTS"] // block_d))


def aot_signatures() -> list[AotCase]:
    """An 8B model's heads into each form, and heads of 80 channels."""
    return list(_aot_cases())


def _aot_cases() -> Iterator[AotCase]:
    for form, dtype in [
        ("bf16", torch.bfloat16), ("fp8", torch.float8_e4m3fn), ("int8", torch.int8),
    ]:  # fmt: skip
        for num_heads, head_dim in [(8, 128), (32, 80)]:
            qkv = torch.empty(64, 48, head_dim, dtype=torch.bfloat16, device="meta")
            arguments = _arguments(
                meta_cache(dtype, num_heads, head_dim),
                meta_cache(dtype, num_heads, head_dim),
                qkv[:, 8 : 8 + num_heads],
                qkv[:, -num_heads:],
                torch.empty(64, dtype=torch.int64, device="meta"),
            )
            block_h = heads_per_program(num_heads, arguments["BLOCK_D"], DEFAULT_CONFIG)
            yield case_of_launch(
                f"store_kv d{head_dim} {form}", _store, {**arguments, "BLOCK_H": block_h}
            )


def meta_cache(dtype: torch.dtype, num_heads: int, head_dim: int) -> KVCache:
    """A cache without data, to compile for."""
    rows = torch.empty(4096, 16, num_heads, head_dim, dtype=dtype, device="meta")
    if dtype is not torch.int8:
        return rows
    return Int8Cache(rows, torch.empty(rows.shape[:-1], dtype=torch.bfloat16, device="meta"))
