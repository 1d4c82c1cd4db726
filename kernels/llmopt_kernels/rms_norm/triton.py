"""RMSNorm on a GPU: one tile of whole rows per program, one read of the input.

With a residual the sum is rounded to the dtype of the activations first, as the sum of two tensors
is, and it is the rounded sum that is normalized. With rounding to int8 or e4m3 it is the output in
the dtype of the activations that is rounded. So a fused kernel gives what its parts give.
"""

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.token_rounding import FORMS, round_tokens
from llmopt_kernels.tuning import Config, launch_config

MAX_CHANNELS = 65536  # a row stays in registers
TILE = 4096  # elements of a program that holds several short rows
FEW_ROWS = 256  # up to so many, which a decode may have, programs leave a GPU idle


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    sum_ptr,
    scale_ptr,
    num_rows,
    channels,
    rows_per_group,
    group_stride,
    row_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Row r of x is at (r // rows_per_group) * group_stride + (r % rows_per_group) * row_stride."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_C)
    row_mask = row < num_rows
    mask = row_mask[:, None] & (column < channels)[None, :]
    start = (row // rows_per_group) * group_stride + (row % rows_per_group) * row_stride
    packed = row[:, None] * channels + column[None, :]
    x = tl.load(x_ptr + start[:, None] + column[None, :], mask=mask, other=0.0)
    dtype = x_ptr.dtype.element_ty
    if HAS_RESIDUAL:
        x = x.to(tl.float32) + tl.load(residual_ptr + packed, mask=mask, other=0.0).to(tl.float32)
        x = x.to(dtype)
        tl.store(sum_ptr + packed, x, mask=mask)
    wide = x.to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < channels, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=1) / channels + eps)
    out = (wide * inverse[:, None] * weight[None, :]).to(dtype)
    if FORM != "none":
        codes, scales = round_tokens(out.to(tl.float32), FORM)
        tl.store(out_ptr + packed, codes, mask=mask)
        tl.store(scale_ptr + row, scales, mask=row_mask)
    else:
        tl.store(out_ptr + packed, out, mask=mask)


def shape_class(num_rows: int, channels: int) -> str:
    """Launch configurations are tuned by the width of a row, for few rows and for many."""
    return f"{'few' if num_rows <= FEW_ROWS else 'many'}_c{triton.next_power_of_2(channels)}"


def candidates(channels: int) -> list[Config]:
    """What a tuner tries for rows of this width."""
    block = triton.next_power_of_2(channels)
    return [
        {"BLOCK_ROWS": rows, "num_warps": warps}
        for rows in (1, 2, 4, 8, 16, 32)
        for warps in (1, 2, 4, 8, 16)
        if (rows == 1 or rows * block <= 2 * TILE) and 4 <= rows * block // (32 * warps) <= 128
    ]


def default_config(channels: int) -> Config:
    """Several short rows, or one long one with 16 elements a thread."""
    block = triton.next_power_of_2(channels)
    rows = max(1, TILE // 4 // block)
    return {"BLOCK_ROWS": rows, "num_warps": min(16, max(2, rows * block // 512))}


def rms_norm_triton(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, config: Config | None = None
) -> torch.Tensor:
    """See `rms_norm`. The last dimension is contiguous. config None: the tuned one."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, eps, out, out, out, "none", config)
    return out


def add_rms_norm_triton(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `add_rms_norm`. config None: the tuned one."""
    out, total = torch.empty_like(residual), torch.empty_like(residual)
    _launch(x, residual, weight, eps, out, total, out, "none", config)
    return out, total


def rms_norm_quantize_triton(
    x: torch.Tensor, weight: torch.Tensor, eps: float, form: str, *, config: Config | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `rms_norm_quantize`. config None: the tuned one."""
    codes = torch.empty(x.shape, dtype=FORMS[form], device=x.device)
    scales = torch.empty((len(x), 1), dtype=torch.float32, device=x.device)
    _launch(x, None, weight, eps, codes, codes, scales, form, config)
    return codes, scales


def add_rms_norm_quantize_triton(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    form: str,
    *,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `add_rms_norm_quantize`. config None: the tuned one."""
    codes = torch.empty(x.shape, dtype=FORMS[form], device=x.device)
    scales = torch.empty((len(x), 1), dtype=torch.float32, device=x.device)
    total = torch.empty_like(residual)
    _launch(x, residual, weight, eps, codes, total, scales, form, config)
    return codes, scales, total


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    total: torch.Tensor,
    scales: torch.Tensor,
    form: str,
    config: Config | None,
) -> None:
    channels = x.shape[-1]
    assert channels <= MAX_CHANNELS, "a row stays in registers"
    assert x.stride(-1) == 1, "channels side by side"
    assert residual is None or residual.is_contiguous(), "the residual is a whole tensor"
    rows_per_group, group_stride, row_stride = _row_strides(x)
    num_rows = x.numel() // channels
    if num_rows == 0:
        return
    config = config or _tuned_config(num_rows, channels)
    rms_norm_kernel[(triton.cdiv(num_rows, config["BLOCK_ROWS"]),)](
        x,
        x if residual is None else residual,
        weight,
        out,
        total,
        scales,
        num_rows,
        channels,
        rows_per_group,
        group_stride,
        row_stride,
        eps,
        HAS_RESIDUAL=residual is not None,
        FORM=form,
        BLOCK_C=triton.next_power_of_2(channels),
        **config,
    )


def _tuned_config(num_rows: int, channels: int) -> Config:
    name = shape_class(num_rows, channels)
    return launch_config("rms_norm", name, default_config(channels))


def _row_strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Rows of a group, and the strides of groups and rows: [T, C], [T, H, C] views as they are."""
    if x.dim() == 3:
        return x.shape[1], x.stride(0), x.stride(1)
    if x.dim() == 2:
        return 1, x.stride(0), x.shape[-1]
    assert x.is_contiguous(), "a view has at most 3 dimensions"
    return 1, x.shape[-1], x.shape[-1]


def aot_signatures() -> list[AotCase]:
    """Rows of an 8B model, of its heads, and of a wide model."""
    return [
        _aot_case(channels, residual=residual, form=form)
        for channels in (128, 4096, 8192)
        for residual, form in [(False, "none"), (True, "none"), (True, "int8"), (True, "fp8")]
    ]


def _aot_case(channels: int, *, residual: bool, form: str) -> AotCase:
    config = dict(default_config(channels))
    warps = config.pop("num_warps")
    out = {"none": "*bf16", "int8": "*i8", "fp8": "*fp8e4nv"}[form]
    tensors = {"x_ptr": "*bf16", "residual_ptr": "*bf16", "weight_ptr": "*bf16", "out_ptr": out}
    sizes = ("num_rows", "channels", "rows_per_group", "group_stride", "row_stride")
    return AotCase(
        name=f"rms_norm c{channels}{' residual' if residual else ''} {form}",
        kernel=rms_norm_kernel,
        signature={
            **tensors,
            "sum_ptr": "*bf16",
            "scale_ptr": "*fp32",
            **dict.fromkeys(sizes, "i32"),
            "eps": "fp32",
        },
        constexprs={
            "HAS_RESIDUAL": residual,
            "FORM": form,
            "BLOCK_C": triton.next_power_of_2(channels),
            **config,
        },
        aligned=("channels", "group_stride", "row_stride"),
        num_warps=warps,
    )
