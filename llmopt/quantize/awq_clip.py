"""AWQ's clip search: shrink the range of each weight group where that lowers the output's error.

The error of one group of one row over all calibration tokens is d H d^T, with d the rounding
error and H the group's block of the Hessian, so all tokens count at the price of a group's width.
Pure maths; knows nothing of models, data or files.
Law: the min-max grid wins ties, so no group ends with more loss than without a search.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.rounding import Grid, min_max_grid, quantize_codes, split_groups
from llmopt.quantize.threads import single_thread

CLIP_STEPS = 20
SMALLEST_CLIP = 0.5
_CHUNK_ELEMENTS = 1 << 17  # the working set of one chunk stays in the second-level cache


@single_thread()
def search_clip(weight: Tensor, hessian: Tensor, spec: QuantSpec) -> Grid:
    """Return the grids of `weight` [O, K] that round its groups best for `hessian` [K, K].

    Both ends of a group's range shrink together, by up to half, as in AWQ; an asymmetric range
    is also tried with one end shrunk, a symmetric one with both signs of the scale.
    """
    blocks = diagonal_blocks(hessian.float(), spec.num_groups(weight.shape[1]))
    rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    found = [_search_rows(chunk, blocks, spec) for chunk in torch.split(weight.float(), rows)]
    zeros = None if spec.symmetric else torch.cat([g.zeros for g in found if g.zeros is not None])
    return Grid(torch.cat([grid.scales for grid in found]), zeros)


def diagonal_blocks(hessian: Tensor, num_groups: int) -> Tensor:
    """Return the blocks of `hessian` [K, K] on its diagonal, [G, K // G, K // G]."""
    size = len(hessian) // num_groups
    blocks = hessian.view(num_groups, size, num_groups, size)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def group_losses(error: Tensor, blocks: Tensor) -> Tensor:
    """Return d H d^T of each row and group, [O, G], of `error` [O, K]."""
    groups = error.view(len(error), *blocks.shape[:2]).transpose(0, 1)  # [G, O, K // G]
    return torch.bmm(groups, blocks).mul_(groups).sum(dim=-1).T


def _search_rows(weight: Tensor, blocks: Tensor, spec: QuantSpec) -> Grid:
    best = min_max_grid(weight, spec)
    best_losses = _losses(weight, best, blocks, spec)
    for grid in _candidates(weight, spec):
        losses = _losses(weight, grid, blocks, spec)
        better = losses < best_losses
        best_losses = torch.where(better, losses, best_losses)
        best = _choose(better, grid, best)
    return best


def _candidates(weight: Tensor, spec: QuantSpec) -> Iterator[Grid]:
    groups = split_groups(weight, spec)
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    largest = torch.maximum(high, -low)
    for share in torch.linspace(1.0, SMALLEST_CLIP, CLIP_STEPS + 1).tolist():
        if spec.symmetric:
            grid = _clipped_grid(groups, -largest * share, largest * share, spec)
            yield grid
            yield Grid(-grid.scales, None)
            continue
        yield _clipped_grid(groups, low * share, high * share, spec)
        yield _clipped_grid(groups, low * share, high, spec)
        yield _clipped_grid(groups, low, high * share, spec)


def _clipped_grid(groups: Tensor, low: Tensor, high: Tensor, spec: QuantSpec) -> Grid:
    return min_max_grid(groups.clamp(low, high).flatten(1), spec)


def _losses(weight: Tensor, grid: Grid, blocks: Tensor, spec: QuantSpec) -> Tensor:
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    steps = split_groups(codes.float(), spec) - grid.zero_points(spec).unsqueeze(-1)
    rounded = steps.mul_(grid.scales.float().unsqueeze(-1)).view(weight.shape)
    return group_losses(rounded.sub_(weight), blocks)


def _choose(better: Tensor, grid: Grid, best: Grid) -> Grid:
    scales = torch.where(better, grid.scales, best.scales)
    if grid.zeros is None or best.zeros is None:
        return Grid(scales, None)
    return Grid(scales, torch.where(better, grid.zeros, best.zeros))
