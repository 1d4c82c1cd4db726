"""The grid of each weight group, and rounding onto it.

Pure maths on one weight matrix [O, K]; knows nothing of calibration, models or files.
Law: a scale is rounded to what the checkpoint stores before any code is chosen with it, so the
weight that was judged is bit for bit the weight that is loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.formats.scales import round_scales
from llmopt.quantize.threads import single_thread

LARGEST_SCALE = 65280.0  # the largest float16 that bfloat16 holds too
SHRINK_STEPS = 24
SMALLEST_SHRINK = 0.5
_CHUNK_ELEMENTS = 1 << 17  # the working set of one chunk stays in the second-level cache


@dataclass(frozen=True, slots=True)
class Grid:
    """The quantization grid of every group: `value = (code - zero) * scale`.

    `scales` is float16 [O, G]; `zeros` is uint8 [O, G], or None where every zero point is
    2^(bits-1). A symmetric scale may be negative: the side with one more level is then the
    positive one.
    """

    scales: Tensor
    zeros: Tensor | None

    def zero_points(self, spec: QuantSpec) -> Tensor:
        """Return the zero points as float32 [O, G]."""
        if self.zeros is None:
            return torch.full_like(self.scales, spec.midpoint, dtype=torch.float32)
        return self.zeros.float()


def check_finite(name: str, weight: Tensor) -> None:
    """Raise `QuantizationError` when the tensor `name` holds a NaN or an infinity."""
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise QuantizationError(
            f"{name} holds {bad} NaN or infinite values of {weight.numel()}",
            "Fetch or convert the checkpoint again: such a weight cannot be quantized.",
        )


def split_groups(weight: Tensor, spec: QuantSpec) -> Tensor:
    """View [O, K] as [O, G, K // G]."""
    out_features, in_features = weight.shape
    num_groups = spec.num_groups(in_features)
    assert in_features % num_groups == 0, "group sizes are checked before weights are split"
    return weight.reshape(out_features, num_groups, in_features // num_groups)


def min_max_grid(weight: Tensor, spec: QuantSpec) -> Grid:
    """Return the grid that just covers each group: what papers call round to nearest.

    Symmetric: scale = 2 max|w| / (2^bits - 1). Asymmetric: the range is widened to hold 0, so
    that the integer zero point is exact. A group of zeros gets scale 1.
    """
    low, high = _group_range(split_groups(weight.float(), spec), spec)
    return _grid_of_range(low, high, spec)


@single_thread()
def search_grid(weight: Tensor, spec: QuantSpec, importance: Tensor | None = None) -> Grid:
    """Shrink each group's min-max range where that lowers `sum importance * error^2`.

    `importance` is float32 [K], the cost of an error in each input column (None: all equal).
    Symmetric grids are tried with both signs of the scale, because the 2^bits levels reach one
    step further on one side. The min-max grid wins ties, so the result is never worse than it.
    """
    groups = split_groups(weight.float(), spec)
    num_groups, size = groups.shape[1:]
    cost = None if importance is None else importance.float().reshape(num_groups, size)
    rows = max(1, _CHUNK_ELEMENTS // (num_groups * size))
    found = [
        _search_rows(groups[start : start + rows], cost, spec)
        for start in range(0, len(groups), rows)
    ]
    zeros = None if spec.symmetric else torch.cat([g.zeros for g in found if g.zeros is not None])
    return Grid(torch.cat([g.scales for g in found]), zeros)


def quantize_codes(weight: Tensor, scales: Tensor, zeros: Tensor | None, spec: QuantSpec) -> Tensor:
    """Return the nearest codes, uint8 [O, K], of `weight` on a grid (`scales`, `zeros`: [O, G])."""
    groups = split_groups(weight.float(), spec)
    zero = Grid(scales, zeros).zero_points(spec).unsqueeze(-1)
    codes = torch.round(groups / scales.float().unsqueeze(-1)) + zero
    return codes.clamp_(0, spec.levels - 1).to(torch.uint8).reshape(weight.shape)


def _group_range(groups: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    low, high = groups.aminmax(dim=-1)
    if spec.symmetric:
        high = torch.maximum(high, -low)
        return -high, high
    return low.clamp(max=0), high.clamp(min=0)


def _grid_of_range(low: Tensor, high: Tensor, spec: QuantSpec) -> Grid:
    exact = (high - low) / (spec.levels - 1)
    if bool((exact > LARGEST_SCALE).any()):
        raise QuantizationError(
            f"a weight of magnitude {float((high - low).max()):.3g} needs a scale beyond float16",
            "Repair or convert the checkpoint: quantized formats store scales in float16.",
        )
    scales = torch.where(exact == 0, torch.ones_like(exact), exact)
    scales = round_scales(scales)
    if spec.symmetric:
        return Grid(scales, None)
    zeros = torch.round(-low / scales.float()).clamp_(0, spec.levels - 1)
    return Grid(scales, zeros.to(torch.uint8))


def _candidates(low: Tensor, high: Tensor, spec: QuantSpec) -> Iterator[Grid]:
    for shrink in torch.linspace(1.0, SMALLEST_SHRINK, SHRINK_STEPS).tolist():
        grid = _grid_of_range(low * shrink, high * shrink, spec)
        yield grid
        if spec.symmetric:
            yield Grid(-grid.scales, None)


def _search_rows(groups: Tensor, cost: Tensor | None, spec: QuantSpec) -> Grid:
    work = torch.empty_like(groups)
    best_error = best_scales = best_zeros = None
    for grid in _candidates(*_group_range(groups, spec), spec):
        error = _squared_error(groups, grid, spec, work)
        total = (error if cost is None else error.mul_(cost)).sum(dim=-1)
        if best_error is None or best_scales is None:
            best_error, best_scales, best_zeros = total, grid.scales, grid.zeros
            continue
        better = total < best_error
        best_error = torch.where(better, total, best_error)
        best_scales = torch.where(better, grid.scales, best_scales)
        if best_zeros is not None and grid.zeros is not None:
            best_zeros = torch.where(better, grid.zeros, best_zeros)
    assert best_scales is not None, "there is at least one candidate"
    return Grid(best_scales, best_zeros)


def _squared_error(groups: Tensor, grid: Grid, spec: QuantSpec, work: Tensor) -> Tensor:
    """Return `work` [O, G, K // G], filled with the squared error of rounding to `grid`."""
    scale = grid.scales.float().unsqueeze(-1)
    zero = grid.zero_points(spec).unsqueeze(-1)
    torch.addcmul(zero, groups, 1.0 / scale, out=work).round_().clamp_(0, spec.levels - 1)
    return work.sub_(zero).mul_(scale).sub_(groups).square_()
