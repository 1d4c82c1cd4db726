"""The kernels between matrix products that work row by row: norms and gated activations.

Knows nothing of timing. The law: torch does what the kernel fuses, operation by operation, as a
model without the kernel would; without Triton, that is also what ours does.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from bench.case import OURS, Case, Contender, randn
from bench.closeness import checked_rows, closeness_problem, rounding_problem
from bench.shapes import Shapes
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.fp8 import reference as fp8
from llmopt_kernels.gated_activation import gated_quantize, silu_mul
from llmopt_kernels.gated_activation.reference import (
    gated_quantize_reference,
    silu_mul_reference,
)
from llmopt_kernels.rms_norm import add_rms_norm, add_rms_norm_quantize
from llmopt_kernels.rms_norm.reference import (
    add_rms_norm_quantize_reference,
    add_rms_norm_reference,
)
from llmopt_kernels.w8a8 import reference as w8a8

TORCH = "torch"
_EPS = 1e-5
_FORMS = {"int8": w8a8.quantize_tokens, "fp8": fp8.quantize_tokens}
# Operations of torch round to bfloat16 between them, where a fused kernel does not:
TORCH_MAGNITUDE = 4.0  # of the terms that are rounded
_TORCH_STEPS = 2  # that a code may be off


def norm_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """RMSNorm of the sum with the residual, alone and rounded to 8 bits."""
    weight = randn(device, shapes.hidden, seed=2).bfloat16()
    for num_tokens in (*shapes.tokens, *shapes.prompts):
        x = randn(device, num_tokens, shapes.hidden).bfloat16()
        residual = randn(device, num_tokens, shapes.hidden, seed=1).bfloat16()
        yield _norm_case(x, residual, weight)
        for form in _FORMS:
            yield _norm_quantize_case(x, residual, weight, form)


def _norm_case(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Case:
    def by_torch() -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, _EPS), total

    rows = checked_rows(len(x), x.device)
    expected = cache(
        lambda: add_rms_norm_reference(x[rows].double(), residual[rows].double(), weight, _EPS)
    )

    def check(out: Any) -> str | None:
        problems = map(closeness_problem, (part[rows] for part in out), expected())
        return next((problem for problem in problems if problem is not None), None)

    num_bytes = 4 * x.nbytes + weight.nbytes
    ours = partial(add_rms_norm, x, residual, weight, _EPS)
    contenders = Contender(OURS, ours, num_bytes), Contender(TORCH, by_torch, num_bytes)
    return Case("rms_norm", f"add c{x.shape[1]}", len(x), contenders, check)


def _norm_quantize_case(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, form: str
) -> Case:
    def by_torch() -> tuple[torch.Tensor, ...]:
        total = x + residual
        return (*_FORMS[form](F.rms_norm(total, weight.shape, weight, _EPS)), total)

    rows = checked_rows(len(x), x.device)
    expected = cache(
        lambda: add_rms_norm_quantize_reference(x[rows], residual[rows], weight, _EPS, form)
    )

    def check(out: Any) -> str | None:
        codes, scales, total = expected()
        sums = closeness_problem(out[2][rows], total.double())
        return sums or rounding_problem((out[0][rows], out[1][rows]), (codes, scales))

    num_bytes = 3 * x.nbytes + x.numel() + 4 * len(x) + weight.nbytes
    ours = partial(add_rms_norm_quantize, x, residual, weight, _EPS, form)
    contenders = Contender(OURS, ours, num_bytes), Contender(TORCH, by_torch, num_bytes)
    return Case("rms_norm", f"add {form} c{x.shape[1]}", len(x), contenders, check)


def gated_cases(device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """SwiGLU, alone and rounded to 8 bits."""
    for num_tokens in (*shapes.tokens, *shapes.prompts):
        gate_up = randn(device, num_tokens, 2 * shapes.inner).bfloat16()
        yield _gated_case(gate_up)
        for form in _FORMS:
            yield _gated_quantize_case(gate_up, form)


def _gated_case(gate_up: torch.Tensor) -> Case:
    rows = checked_rows(len(gate_up), gate_up.device)
    expected = cache(lambda: silu_mul_reference(gate_up[rows].double()))

    def by_operations(out: Any) -> str | None:
        return closeness_problem(out[rows], expected(), magnitude=TORCH_MAGNITUDE)

    def fused(out: Any) -> str | None:
        return closeness_problem(out[rows], expected())

    num_bytes = gate_up.nbytes * 3 // 2
    return Case(
        "gated_activation",
        f"silu f{gate_up.shape[1] // 2}",
        len(gate_up),
        (
            Contender(OURS, partial(silu_mul, gate_up), num_bytes),
            Contender(TORCH, partial(_silu_mul, gate_up), num_bytes, check=by_operations),
        ),
        fused if uses_triton(gate_up) else by_operations,
    )


def _gated_quantize_case(gate_up: torch.Tensor, form: str) -> Case:
    rows = checked_rows(len(gate_up), gate_up.device)
    expected = cache(lambda: gated_quantize_reference(gate_up[rows], "silu", form))
    num_bytes = gate_up.nbytes * 5 // 4 + 4 * len(gate_up)

    def by_torch() -> tuple[torch.Tensor, torch.Tensor]:
        return _FORMS[form](_silu_mul(gate_up))

    def by_operations(out: Any) -> str | None:
        return rounding_problem((out[0][rows], out[1][rows]), expected(), max_steps=_TORCH_STEPS)

    def fused(out: Any) -> str | None:
        return rounding_problem((out[0][rows], out[1][rows]), expected())

    return Case(
        "gated_activation",
        f"silu {form} f{gate_up.shape[1] // 2}",
        len(gate_up),
        (
            Contender(OURS, partial(gated_quantize, gate_up, "silu", form), num_bytes),
            Contender(TORCH, by_torch, num_bytes, check=by_operations),
        ),
        fused if uses_triton(gate_up) else by_operations,
    )


def _silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
