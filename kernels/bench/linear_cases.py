"""Matrix products of linear layers: each scheme against its definition, cuBLAS in bf16, and peers.

Knows nothing of timing. The law: what is measured is the layer that a model would run here
(`llmopt.layers.linear.make_linear`), with the kernel that it chooses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from bench.case import OURS, Case, Contender, randint, randn
from bench.closeness import (
    Check,
    checked_rows,
    closeness_problem,
    norm_problem,
)
from bench.peers import codebook_peers, uniform_peers
from bench.shapes import Shapes
from llmopt.formats.codebook import CodebookWeight
from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.fp8 import Fp8Weight
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight
from llmopt.layers.linear import Linear, make_linear
from llmopt_kernels.fp8.reference import fp8_reference
from llmopt_kernels.w8a8.reference import w8a8_reference

BASELINE = "torch bf16"
_BLOCK = 64  # weights that share a scale in NF4
_STD = 0.02


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way of storing weights. flops_dtype: of the operands that are multiplied."""

    kernel: str
    label: str
    make: Callable[[torch.device, int, int], StoredWeight]
    flops_dtype: str = "bfloat16"


def uniform_weight(
    device: torch.device, rows: int, columns: int, *, bits: int, group_size: int | None
) -> QuantizedWeight:
    """Random codes, and scales that bfloat16 holds."""
    spec = QuantSpec(bits, group_size)
    scale = _STD * (12 / (spec.levels**2 - 1)) ** 0.5
    spread = 0.5 + randint(device, 128, rows, spec.num_groups(columns), seed=1).float() / 128
    codes = randint(device, spec.levels, rows, columns)
    return QuantizedWeight(codes, (scale * spread).bfloat16(), None, None, spec)


def nf4_weight(device: torch.device, rows: int, columns: int) -> CodebookWeight:
    """Random codes; each block has the greatest one, so that its scale can be found again."""
    codes = randint(device, 16, rows, columns)
    codes.view(-1, _BLOCK)[:, 0] = 15
    spread = 0.5 + randint(device, 128, rows * columns // _BLOCK, seed=1).float() / 128
    return CodebookWeight(codes, 2 * _STD * spread, "nf4", _BLOCK)


def int8_weight(device: torch.device, rows: int, columns: int) -> DynamicWeight:
    """Rows of 8 bits, for inputs of 8 bits."""
    return DynamicWeight(uniform_weight(device, rows, columns, bits=8, group_size=None), "int8")


def fp8_weight(device: torch.device, rows: int, columns: int) -> DynamicWeight:
    """Rows of e4m3, for inputs of e4m3."""
    values = randn(device, rows, columns).to(torch.float8_e4m3fn)
    scales = torch.full((rows, 1), _STD, device=device)
    return DynamicWeight(Fp8Weight(values, scales), "fp8")


SCHEMES: tuple[Scheme, ...] = (
    Scheme("wna16", "w4g128", partial(uniform_weight, bits=4, group_size=128)),
    Scheme("wna16", "w8g128", partial(uniform_weight, bits=8, group_size=128)),
    Scheme("nf4", "nf4", nf4_weight),
    Scheme("w8a8", "w8a8", int8_weight, "int8"),
    Scheme("fp8", "fp8", fp8_weight, "float8_e4m3fn"),
)


def linear_cases(kernel: str, device: torch.device, shapes: Shapes) -> Iterator[Case]:
    """Products of the schemes of `kernel`, matrix by matrix, small batches first."""
    for scheme in SCHEMES:
        for rows, columns in shapes.matrices if scheme.kernel == kernel else ():
            weight = scheme.make(device, rows, columns)
            linear = make_linear([weight], [None], dtype=torch.bfloat16, device=device)
            dense = weight.dequantize(torch.bfloat16)
            for num_tokens in (*shapes.tokens, *shapes.prompts):
                yield _case(scheme, weight, linear, dense, num_tokens)


def _case(
    scheme: Scheme, weight: StoredWeight, linear: Linear, dense: torch.Tensor, num_tokens: int
) -> Case:
    rows, columns = weight.shape
    x = randn(dense.device, num_tokens, columns, seed=num_tokens).bfloat16()
    traffic = 2 * num_tokens * (rows + columns)
    others = _dense_check(weight, x, by_norm=True)
    contenders = [
        Contender(OURS, partial(linear, x), traffic + linear.weight_bytes, linear.kernel),
        Contender(
            BASELINE,
            partial(F.linear, x, dense),
            traffic + dense.nbytes,
            check=others,
        ),
    ]
    check = _dense_check(weight, x, by_norm=_rounds_inputs(linear))
    if isinstance(weight, DynamicWeight):
        check = _dynamic_check(weight, x)
    if isinstance(weight, QuantizedWeight):
        contenders += [replace(peer, check=others) for peer in uniform_peers(x, weight, traffic)]
    if isinstance(weight, CodebookWeight):
        contenders += [replace(peer, check=others) for peer in codebook_peers(x, weight, traffic)]
    return Case(
        kernel=scheme.kernel,
        shape=f"{scheme.label} {rows}x{columns}",
        num_tokens=num_tokens,
        contenders=tuple(contenders),
        check=check,
        num_flops=2.0 * num_tokens * rows * columns,
        flops_dtype=scheme.flops_dtype,
    )


def _rounds_inputs(linear: Linear) -> bool:
    """Whether a layer for weights alone rounds its inputs besides, as native CPU kernels do."""
    return "a8" in linear.kernel


def _dense_check(weight: StoredWeight, x: torch.Tensor, *, by_norm: bool) -> Check:
    """Against the product with the dequantized weight in float64."""
    rows = checked_rows(len(x), x.device)
    expected = cache(lambda: x[rows].double() @ weight.dequantize().double().T)

    def check(out: Any) -> str | None:
        if by_norm:
            return norm_problem(out[rows], expected())
        return _product_problem(out[rows], expected(), weight)

    return check


def _dynamic_check(weight: DynamicWeight, x: torch.Tensor) -> Check:
    """Against the product of rounded inputs that the kernel defines."""

    rows = checked_rows(len(x), x.device)

    @cache
    def expected() -> torch.Tensor:
        stored, wide = weight.weight, x[rows].double()
        if isinstance(stored, Fp8Weight):
            return fp8_reference(wide, stored.values, stored.row_scales().flatten())
        values = (stored.codes.int() - stored.spec.midpoint).to(torch.int8)
        return w8a8_reference(wide, values, stored.scales.float().flatten())

    return lambda out: _product_problem(out[rows], expected(), weight)


def _product_problem(out: torch.Tensor, expected: torch.Tensor, weight: StoredWeight) -> str | None:
    magnitude = 2 * weight.dequantize().square().mean().sqrt().item()
    return closeness_problem(out, expected, num_terms=weight.shape[1], magnitude=magnitude)
