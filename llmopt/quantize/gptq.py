"""GPTQ: round the columns of a weight one by one, and let the later ones absorb the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv 2210.17323), with static act-order: the grids are fixed from the original
weight in its natural column order, and the columns are visited by descending Hessian diagonal, so
the result needs no `g_idx`. Pure maths (W and H in, `QuantizedWeight` out); knows nothing of
models, data or files.
Law: the loss that is reported belongs to the very weight that is returned.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.quantize.rounding import Grid, check_finite, min_max_grid, quantize_codes, search_grid
from llmopt.quantize.threads import single_thread

ActOrder = Literal["static", "none"]

DAMPING_GROWTH = 4.0
MAX_DAMPING = 1.0
_HESSIAN_CHUNK_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class GPTQOptions:
    """How GPTQ runs.

    damping: added to the Hessian's diagonal, as a share of its mean; grows when that is not enough
    block_size: columns after which the remaining ones are updated; changes speed, not the maths
    act_order: "static" visits columns by descending Hessian diagonal, "none" in natural order
    scale_search: choose grids that minimize the Hessian-weighted rounding error, not min-max ones
    """

    damping: float = 0.01
    block_size: int = 64
    act_order: ActOrder = "static"
    scale_search: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.damping <= MAX_DAMPING or self.block_size < 1:
            raise QuantizationError(
                f"a damping of {self.damping} and a block size of {self.block_size} make no sense",
                f"Use a damping above 0 and up to {MAX_DAMPING}, and a block size of 1 or more.",
            )


@dataclass(frozen=True, slots=True)
class GPTQResult:
    """A quantized weight and what is known about it.

    row_losses: float32 [O], mean squared error of each output over the calibration tokens
    row_energies: float32 [O], mean square of each output before quantization
    damping: the damping that the factorization needed; None if none was enough, and the weight
        was rounded to nearest instead
    dead_columns: inputs that were zero for every calibration token (they are rounded to nearest)
    """

    weight: QuantizedWeight
    row_losses: Tensor
    row_energies: Tensor
    damping: float | None
    dead_columns: int

    @property
    def loss(self) -> float:
        """Mean squared error of an output."""
        return float(self.row_losses.mean())


def accumulate_hessian(inputs: Tensor) -> Tensor:
    """Return H = X^T X / T, float32 [K, K], of the layer inputs `inputs` [T, K].

    Tokens are taken in chunks and always summed in float32: half precision sums lose positive
    definiteness. Dividing by T makes losses and dampings of different runs comparable.
    """
    tokens, in_features = inputs.shape
    assert tokens > 0, "a Hessian needs at least one token"
    hessian = torch.zeros(in_features, in_features, device=inputs.device)
    for start in range(0, tokens, _HESSIAN_CHUNK_TOKENS):
        rows = inputs[start : start + _HESSIAN_CHUNK_TOKENS].float()
        hessian.addmm_(rows.T, rows, alpha=1.0 / tokens)
    return hessian


def quantize_gptq(
    weight: Tensor,
    hessian: Tensor,
    spec: QuantSpec,
    options: GPTQOptions | None = None,
    *,
    name: str = "the weight",
) -> GPTQResult:
    """Quantize `weight` [O, K] so that its outputs change little on inputs with `hessian` [K, K].

    Rows that share their inputs (q, k and v) may be stacked: rows do not influence each other.
    Raises `QuantizationError`, naming `name`, when the weight or the Hessian is not finite.
    """
    options = options or GPTQOptions()
    check_finite(name, weight)
    check_finite(f"the Hessian of {name}", hessian)
    weight, hessian = weight.float(), hessian.float()
    importance = hessian.diagonal()
    if options.scale_search:
        grid = search_grid(weight, spec, importance)
    else:
        grid = min_max_grid(weight, spec)
    order = _visiting_order(importance, options.act_order)
    factor, damping = _factor_with_damping(hessian, order, options.damping)
    if factor is None:
        codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    else:
        codes = _round_columns(weight, factor, order, grid, spec, options.block_size)
    quantized = QuantizedWeight(codes, grid.scales, grid.zeros, None, spec)
    return GPTQResult(
        weight=quantized,
        row_losses=row_energies(weight - quantized.dequantize(), hessian),
        row_energies=row_energies(weight, hessian),
        damping=damping,
        dead_columns=int((importance == 0).sum()),
    )


def row_energies(weight: Tensor, hessian: Tensor) -> Tensor:
    """Return diag(W H W^T), float32 [O]: the mean square of each output of `weight` [O, K]."""
    return (weight @ hessian).mul_(weight).sum(dim=1)


def _visiting_order(importance: Tensor, act_order: ActOrder) -> Tensor:
    if act_order == "static":
        return torch.argsort(importance, descending=True, stable=True)
    return torch.arange(len(importance), device=importance.device)


def _factor_with_damping(
    hessian: Tensor, order: Tensor, damping: float
) -> tuple[Tensor | None, float | None]:
    """Raise the damping until the Hessian can be factored; (None, None) when nothing helps."""
    diagonal = hessian.diagonal()
    alive = diagonal > 0
    mean = diagonal[alive].mean() if bool(alive.any()) else torch.ones_like(diagonal[0])
    while damping <= MAX_DAMPING:
        damped = torch.where(alive, diagonal + damping * mean, mean)
        factor = _inverse_factor(hessian, damped, order)
        if factor is not None:
            return factor, damping
        damping *= DAMPING_GROWTH
    return None, None


def _inverse_factor(hessian: Tensor, diagonal: Tensor, order: Tensor) -> Tensor | None:
    """Return the upper triangular U with U^T U = H^-1, each row divided by its diagonal entry.

    H is `hessian` with another `diagonal` [K], its rows and columns in `order` [K]. Reversing them
    in the Cholesky factor L of the reversed H gives U = reverse(L^-1): one factorization and one
    triangular solve, without ever forming H^-1. At most two matrices of this size live besides
    `hessian`. None if H is not numerically positive definite.
    """
    backwards = order.flip(0)
    lower = hessian[backwards.unsqueeze(1), backwards].T
    lower.diagonal().copy_(diagonal[backwards])
    failed = torch.empty((), dtype=torch.int32, device=hessian.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if int(failed) or not bool(lower.diagonal().isfinite().all()):
        return None
    inverse = torch.eye(len(lower), device=lower.device).T
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    factor = inverse.flip(0, 1)
    del inverse
    factor /= factor.diagonal().clone().unsqueeze(1)
    return factor if bool(factor.sum().isfinite()) else None


@single_thread()
def _round_columns(
    weight: Tensor,
    factor: Tensor,
    order: Tensor,
    grid: Grid,
    spec: QuantSpec,
    block_size: int,
) -> Tensor:
    """Run the column loop and return the codes, uint8 [O, K], in natural column order.

    `factor` [K, K] is in visiting order. The weight is held transposed, one contiguous row per
    column, and moved by zero * scale so that codes start at 0. A column takes the errors of its
    own block just before it is rounded; the columns of later blocks take them all at once.
    """
    in_features = weight.shape[1]
    group_size = spec.columns_per_group(in_features)
    scales = grid.scales.float().T.contiguous()  # [G, O]
    inverse_scales = 1.0 / scales
    offset = grid.zero_points(spec).T * scales
    columns = weight.T[order] + offset[order // group_size]  # [K, O]
    codes = torch.empty_like(columns)
    errors = torch.empty(block_size, weight.shape[0], device=weight.device)
    groups = (order // group_size).tolist()
    for start in range(0, in_features, block_size):
        stop = min(start + block_size, in_features)
        feedback = factor[start:stop, start:stop].T.contiguous()  # row j: what column j receives
        for j, group in enumerate(groups[start:stop]):
            column, code = columns[start + j], codes[start + j]
            if j:
                column.addmv_(errors[:j].T, feedback[j, :j], alpha=-1.0)
            torch.mul(column, inverse_scales[group], out=code).round_().clamp_(0, spec.levels - 1)
            torch.addcmul(column, code, scales[group], value=-1.0, out=errors[j])
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors[: stop - start], alpha=-1.0)
    natural = torch.empty_like(codes)
    natural[order] = codes
    return natural.T.to(torch.uint8).contiguous()
