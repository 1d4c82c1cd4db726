"""Launches of the kernels in `triton.py`: from tensors to grids.

The law of `matmul.launch`: nothing waits for the GPU, and launches depend on shapes alone.
"""

import torch

from llmopt_kernels.aot import AotCase
from llmopt_kernels.matmul.configs import ShapeClass, default_config
from llmopt_kernels.matmul.launch import parts_like, sum_parts
from llmopt_kernels.matmul.scaled.triton import quantize_tokens_kernel, scaled_matmul_kernel
from llmopt_kernels.token_rounding import FORMS
from llmopt_kernels.tuning import Config

BLOCK_KS = (128, 64, 256)
_LONG_ROW = 16384
_HIDDEN = 4096


def quantize_tokens(x: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row of x [T, K] to a form of `token_rounding`: -> values [T, K], scales float32
    [T, 1].
    """
    x = x.contiguous()
    values = torch.empty(x.shape, dtype=FORMS[form], device=x.device)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    block = 1 << (x.shape[1] - 1).bit_length()
    warps = 8 if block <= _LONG_ROW else 16
    quantize_tokens_kernel[(len(x),)](
        x, values, scales, x.shape[1], FORM=form, BLOCK=block, num_warps=warps
    )
    return values, scales


def scaled_matmul(
    values: torch.Tensor,
    token_scales: torch.Tensor,
    weight: torch.Tensor,
    row_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    config: Config,
) -> torch.Tensor:
    """values [T, K] times weight [O, K], both int8 or both e4m3, scaled and plus bias: -> [T, O].

    token_scales: float32 [T, 1]; row_scales: float32 [O]; bias: [O]; dtype: of the result.
    """
    num_tokens, num_columns = values.shape
    num_rows = len(weight)
    out = torch.empty(num_tokens, num_rows, dtype=dtype, device=values.device)
    parts = config["SPLIT_K"]
    sum_dtype = torch.int32 if weight.dtype == torch.int8 else torch.float32
    target = parts_like(out, parts, sum_dtype) if parts > 1 else out
    row_tiles = -(-num_rows // config["BLOCK_O"])
    token_tiles = -(-num_tokens // config["BLOCK_T"])
    scaled_matmul_kernel[(row_tiles * token_tiles, parts)](
        values,
        weight,
        token_scales,
        row_scales,
        bias,
        target,
        num_tokens,
        num_rows,
        num_columns,
        **config,
    )
    if parts > 1:
        sum_parts(target, out, bias, (token_scales, row_scales))
    return out


def aot_cases(name: str, element: str, form: str) -> list[AotCase]:
    """Specializations for a 4096 x 4096 weight; `element` as Triton writes it: "i8", "fp8e4nv"."""
    return [
        *(_product_case(f"{name} {tokens} tokens", element, tokens) for tokens in (1, 64, 512)),
        AotCase(
            f"{name} quantize tokens",
            quantize_tokens_kernel,
            {"x": "*bf16", "values": f"*{element}", "scales": "*fp32", "num_columns": "i32"},
            {"FORM": form, "BLOCK": _HIDDEN},
            aligned=("num_columns",),
            num_warps=8,
        ),
    ]


def _product_case(name: str, element: str, num_tokens: int) -> AotCase:
    config = dict(default_config(ShapeClass.of(8, num_tokens, _HIDDEN, _HIDDEN), BLOCK_KS[0]))
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    sums = "*i32" if element == "i8" else "*fp32"
    return AotCase(
        name,
        scaled_matmul_kernel,
        {
            "values": f"*{element}",
            "weight": f"*{element}",
            "token_scales": "*fp32",
            "row_scales": "*fp32",
            "out": sums if config["SPLIT_K"] > 1 else "*bf16",
            "num_tokens": "i32",
            "num_rows": "i32",
            "num_columns": "i32",
        },
        {"bias": None, **config},
        aligned=("num_rows", "num_columns"),
        num_warps=warps,
        num_stages=stages,
        needs_wgmma=True,
    )
