"""Gated activations on a GPU: gate and up are read once, and the product is written once.

Everything is float32 until the product is rounded, so nothing is rounded between activation and
product. With rounding to int8 or e4m3 a program holds a whole row, whose greatest value it needs.
"""

import torch
import triton
import triton.language as tl

from llmopt_kernels.aot import AotCase
from llmopt_kernels.token_rounding import FORMS, round_tokens
from llmopt_kernels.tuning import Config, launch_config

MAX_FEATURES = 65536  # of a row that is rounded
FEW_ROWS = 256  # up to so many, which a decode may have, programs leave a GPU idle
SQRT_HALF = tl.constexpr(0.7071067811865476)
GELU_SLOPE = tl.constexpr(1.5957691216057308)  # 2 * sqrt(2 / pi)


@triton.jit
def activate(gate, ACTIVATION: tl.constexpr):
    """0.5 * (1 + tanh(z)) is sigmoid(2 * z), so the tanh form of GELU needs no tanh."""
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    if ACTIVATION == "gelu_tanh":
        return gate * tl.sigmoid((gate + 0.044715 * gate * gate * gate) * GELU_SLOPE)
    return 0.5 * gate * (1.0 + tl.erf(gate * SQRT_HALF))


@triton.jit
def gated_kernel(gate_up_ptr, out_ptr, features, row_stride, ACTIVATION: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """One block of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < features
    gate = tl.load(gate_up_ptr + row * row_stride + column, mask=mask, other=0.0)
    up = tl.load(gate_up_ptr + row * row_stride + features + column, mask=mask, other=0.0)
    out = activate(gate.to(tl.float32), ACTIVATION) * up.to(tl.float32)
    tl.store(out_ptr + row * features + column, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gated_quantize_kernel(gate_up_ptr, out_ptr, scale_ptr, features, row_stride,
                          ACTIVATION: tl.constexpr, FORM: tl.constexpr,
                          BLOCK: tl.constexpr):  # fmt: skip
    """One row, rounded to the dtype of the input and then to its form."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    mask = column < features
    gate = tl.load(gate_up_ptr + row * row_stride + column, mask=mask, other=0.0)
    up = tl.load(gate_up_ptr + row * row_stride + features + column, mask=mask, other=0.0)
    out = activate(gate.to(tl.float32), ACTIVATION) * up.to(tl.float32)
    out = out.to(gate_up_ptr.dtype.element_ty).to(tl.float32)
    codes, scales = round_tokens(out, FORM)
    tl.store(out_ptr + row * features + column, codes, mask=mask)
    tl.store(scale_ptr + row + tl.arange(0, 1), scales)


def shape_class(num_rows: int, features: int, *, rounded: bool) -> str:
    """Launch configurations are tuned by the width of a row, for few rows and for many, and for
    each of the two kernels.
    """
    rows = "few" if num_rows <= FEW_ROWS else "many"
    return f"{rows}_f{triton.next_power_of_2(features)}{'_rounded' if rounded else ''}"


def candidates(features: int, *, rounded: bool) -> list[Config]:
    """What a tuner tries. The kernel that rounds holds a whole row, in any number of warps."""
    if rounded:
        width = triton.next_power_of_2(features)
        choices = [1, 2, 4, 8, 16, 32]
        return [{"num_warps": warps} for warps in choices if 4 <= width // (32 * warps) <= 64]
    return [
        {"BLOCK": block, "num_warps": warps}
        for block in (256, 512, 1024, 2048, 4096)
        for warps in (2, 4, 8)
        if 4 <= block // (32 * warps) <= 32
    ]


def default_config(features: int, *, rounded: bool) -> Config:
    """8 elements a thread, 16 bytes of 16-bit types; 16 where a program holds a row, if it may
    have so many threads.
    """
    if rounded:
        return {"num_warps": min(32, max(1, triton.next_power_of_2(features) // 512))}
    return {"BLOCK": 1024, "num_warps": 4}


def gated_activation_triton(
    gate_up: torch.Tensor, activation: str, *, config: Config | None = None
) -> torch.Tensor:
    """gate_up: [T, 2 * F], rows contiguous; activation: silu, gelu_tanh or gelu -> [T, F].

    config None: the tuned one.
    """
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1, "features side by side"
    out = torch.empty((rows, features), dtype=gate_up.dtype, device=gate_up.device)
    config = config or _tuned_config(rows, features, rounded=False)
    if rows:
        grid = (rows, triton.cdiv(features, config["BLOCK"]))
        gated_kernel[grid](gate_up, out, features, gate_up.stride(0), activation, **config)
    return out


def gated_quantize_triton(
    gate_up: torch.Tensor, activation: str, form: str, *, config: Config | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gated_activation_triton`, rounded: -> codes [T, F], scales float32 [T, 1]."""
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1, "features side by side"
    assert features <= MAX_FEATURES, "a row stays in registers"
    codes = torch.empty((rows, features), dtype=FORMS[form], device=gate_up.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=gate_up.device)
    config = config or _tuned_config(rows, features, rounded=True)
    if rows:
        gated_quantize_kernel[(rows,)](
            gate_up,
            codes,
            scales,
            features,
            gate_up.stride(0),
            activation,
            form,
            triton.next_power_of_2(features),
            **config,
        )
    return codes, scales


def _tuned_config(num_rows: int, features: int, *, rounded: bool) -> Config:
    name = shape_class(num_rows, features, rounded=rounded)
    return launch_config("gated_activation", name, default_config(features, rounded=rounded))


def aot_signatures() -> list[AotCase]:
    """The MLP of an 8B model, and the row of a 70B model."""
    default = default_config(14336, rounded=False)
    plain = [
        AotCase(
            name=f"gated_activation {activation}",
            kernel=gated_kernel,
            signature={
                "gate_up_ptr": "*bf16",
                "out_ptr": "*bf16",
                "features": "i32",
                "row_stride": "i32",
            },
            constexprs={"ACTIVATION": activation, "BLOCK": default["BLOCK"]},
            aligned=("features", "row_stride"),
            num_warps=default["num_warps"],
        )
        for activation in ("silu", "gelu_tanh", "gelu")
    ]
    rounded = [
        AotCase(
            name=f"gated_activation silu {form} f{features}",
            kernel=gated_quantize_kernel,
            signature={
                "gate_up_ptr": "*bf16",
                "out_ptr": "*i8" if form == "int8" else "*fp8e4nv",
                "scale_ptr": "*fp32",
                "features": "i32",
                "row_stride": "i32",
            },
            constexprs={
                "ACTIVATION": "silu",
                "FORM": form,
                "BLOCK": triton.next_power_of_2(features),
            },
            aligned=("features", "row_stride"),
            num_warps=default_config(features, rounded=True)["num_warps"],
        )
        for features in (14336, 28672)
        for form in FORMS
    ]
    return plain + rounded
