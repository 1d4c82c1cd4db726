"""Specializations of the packed product for `llmopt_kernels.aot`: real shapes and defaults."""

from typing import Any

from llmopt_kernels.aot import AotCase
from llmopt_kernels.matmul.configs import ShapeClass, default_config
from llmopt_kernels.matmul.packed import BLOCK
from llmopt_kernels.matmul.triton import dequantize_kernel, packed_matmul_kernel

_SIZES = ("num_rows", "num_columns")
_HIDDEN = 4096


def packed_case(
    name: str,
    num_tokens: int,
    *,
    bits: int = 4,
    group_size: int = 128,
    dtype: str = "bf16",
    scales: str = "bf16",
    zeros: bool = False,
    offsets: bool = False,
    table: bool = False,
) -> AotCase:
    """A product of a 4096 x 4096 weight. Types as Triton writes them."""
    config = dict(default_config(ShapeClass.of(bits, num_tokens, _HIDDEN, _HIDDEN), BLOCK))
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    parts = config["SPLIT_K"] > 1
    stored, absent = _stored(scales, zeros, offsets, table)
    bias = {} if parts else {"bias": f"*{dtype}"}
    return AotCase(
        name,
        packed_matmul_kernel,
        {
            "x": f"*{dtype}",
            **stored,
            **bias,
            "out": "*fp32" if parts else f"*{dtype}",
            "num_tokens": "i32",
            **dict.fromkeys(_SIZES, "i32"),
        },
        {**absent, **({"bias": None} if parts else {}), **_layout(bits, group_size), **config},
        aligned=_SIZES,
        num_warps=warps,
        num_stages=stages,
        needs_wgmma=True,
    )


def dequantize_case(name: str, *, bits: int, scales: str = "bf16", table: bool = False) -> AotCase:
    """A weight with groups of 64 that is dequantized to bfloat16."""
    stored, absent = _stored(scales, False, False, table)
    return AotCase(
        name,
        dequantize_kernel,
        {**stored, "out": "*bf16", **dict.fromkeys(_SIZES, "i32")},
        {**absent, **_layout(bits, 64), "BLOCK_O": 64, "BLOCK_K": BLOCK},
        aligned=_SIZES,
    )


def _stored(
    scales: str, zeros: bool, offsets: bool, table: bool
) -> tuple[dict[str, str], dict[str, None]]:
    present = {"words": "*i32", "scales": f"*{scales}"}
    optional = {"zeros": ("*u8", zeros), "offsets": ("*fp32", offsets), "table": ("*fp32", table)}
    present |= {name: kind for name, (kind, there) in optional.items() if there}
    return present, {name: None for name, (_, there) in optional.items() if not there}


def _layout(bits: int, group_size: int) -> dict[str, Any]:
    step = min(group_size & -group_size, BLOCK)
    return {"ZERO": 1 << (bits - 1), "BITS": bits, "GROUP_SIZE": group_size, "STEP": step}
