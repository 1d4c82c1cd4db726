"""Scales and offsets of small blocks by weighted least squares.

Pure maths on columns of numbers; knows nothing of ggml's blocks, of rows or of files. The law:
among the candidates that are tried, the one with the smallest `sum cost * (x - x')^2` wins, the
earliest on a tie, so the result depends on the numbers only.

Method: try several widths of the range, take the codes each one rounds to, and solve for the scale
(and offset) that suits those codes best; then alternate rounding and solving from the best one. The
same idea as ggml's make_qx_quants and make_qkx2_quants.

Legend: E elements of a block, * any trailing shape (one entry per block); sums run over E.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SIDES = (0.0, 0.5, 1.0)  # the part of what a narrow range leaves out that is left out below it
SINGULAR = 1e-6  # relative size of a determinant that float32 sums cannot tell from 0
_TINY = 1e-30  # nothing smaller is told from 0: its inverse, or its square, leaves float32


@dataclass(frozen=True, slots=True)
class _LevelTable:
    """The nearest level of each cell between two neighbouring half-integers: since levels are
    integers, no cell holds the middle between two of them.
    """

    lowest: int
    level_of_cell: Tensor  # float32
    code_of_cell: Tensor  # uint8

    @classmethod
    def of(cls, levels: Sequence[int], device: torch.device) -> "_LevelTable":
        table = torch.tensor(levels, dtype=torch.float32)
        inside = torch.arange(2 * levels[0], 2 * levels[-1]) / 2 + 0.25
        codes = torch.bucketize(inside, (table[1:] + table[:-1]) / 2)
        return cls(levels[0], table[codes].to(device), codes.to(device, torch.uint8))

    def cells(self, values: Tensor) -> Tensor:
        """The cell of every value, int32 [all values]; overwrites `values`."""
        last = len(self.level_of_cell) - 1
        cells = values.sub_(self.lowest).mul_(2).floor_().clamp_(0, last)
        return cells.to(torch.int32).flatten()


@dataclass(frozen=True, slots=True)
class Levels:
    """The numbers that codes stand for, before the scale: the integers of a range, as code -
    `midpoint`, or the entries of a table.
    """

    lowest: int
    highest: int
    midpoint: int = 0
    table: _LevelTable | None = None

    @classmethod
    def of_table(cls, levels: Sequence[int], device: torch.device) -> "Levels":
        """From a list of rising integers."""
        return cls(levels[0], levels[-1], table=_LevelTable.of(levels, device))

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest level of every value; overwrites `values`."""
        if self.table is None:
            return values.round_().clamp_(self.lowest, self.highest)
        return self.table.level_of_cell.index_select(0, self.table.cells(values)).view_as(values)

    def codes(self, values: Tensor) -> Tensor:
        """The code of the nearest level of every value, uint8; overwrites `values`."""
        if self.table is None:
            return self.nearest(values).add_(self.midpoint).to(torch.uint8)
        return self.table.code_of_cell.index_select(0, self.table.cells(values)).view_as(values)


def fit_scale(
    values: Tensor, cost: Tensor, levels: Levels, widths: Sequence[float], rounds: int
) -> Tensor:
    """Scales [*] such that scale * level is close to `values` [E, *], weighted by `cost` [E, *].

    The value of largest magnitude is put on `width` times the lowest level, and on the same times
    the highest, so scales of both signs are tried; the best is polished `rounds` times.
    """
    inverse_peak = inverse_or_zero(_peak(values))
    weighted = values * cost
    best_gain, best_scale = torch.zeros_like(inverse_peak), torch.zeros_like(inverse_peak)

    def attempt(inverse: Tensor) -> None:
        nonlocal best_gain, best_scale
        chosen = levels.nearest(values * inverse)
        dot = (weighted * chosen).sum(0)
        energy = (chosen.square() * cost).sum(0)
        scale = ratio(dot, energy)
        gain = dot * scale  # how much smaller than sum cost * x^2 the error is
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)

    for width in widths:
        if levels.lowest < 0:
            attempt((levels.lowest * width) * inverse_peak)
        attempt((levels.highest * width) * inverse_peak)
    for _ in range(rounds):
        attempt(inverse_or_zero(best_scale))
    return best_scale


def fit_affine(
    values: Tensor, cost: Tensor, top: int, widths: Sequence[float], rounds: int, *, below: bool
) -> tuple[Tensor, Tensor]:
    """Scales and offsets [*] such that scale * code + offset is close to `values` [E, *].

    Codes are 0 .. top. Ranges `width` times narrower than that of the values are tried, at either
    end of it and in its middle. `below` keeps the offset at or below zero, as K-quants store it.
    """
    low, high = values.amin(0), values.amax(0)
    if below:
        low = low.clamp_max(0)
    span = (high - low).clamp_min(0)
    problem = AffineFit(values, cost, values * cost, below)
    scale, offset = span / top, low
    best_error = torch.full_like(low, torch.inf)

    def attempt(inverse: Tensor, start: Tensor) -> None:
        nonlocal best_error, scale, offset
        codes = (values - start).mul_(inverse).round_().clamp_(0, top)
        found_scale, found_offset, error = problem.solve(codes)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        scale = torch.where(better, found_scale, scale)
        offset = torch.where(better, found_offset, offset)

    for width in widths:
        clipped = span * (1 - 1 / width)
        for side in _SIDES if width > 1 else (0.0,):
            attempt((top * width) * inverse_or_zero(span), low + side * clipped)
    for _ in range(rounds):
        attempt(inverse_or_zero(scale), offset)
    return scale, offset


class AffineFit:
    """The best scale and offset for given codes; what does not depend on them is computed once."""

    def __init__(self, values: Tensor, cost: Tensor, weighted: Tensor, below: bool) -> None:
        self._cost = cost
        self._weighted = weighted
        self._below = below
        self._sum_cost = cost.sum(0)
        self._sum_values = weighted.sum(0)
        self._sum_squares = (weighted * values).sum(0)

    def solve(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, offset and weighted squared error [*] for `codes` [E, *]."""
        costly = codes * self._cost
        first, second = costly.sum(0), (costly * codes).sum(0)
        dot = (codes * self._weighted).sum(0)
        total, sum_values = self._sum_cost, self._sum_values
        determinant = total * second - first.square()
        varied = determinant > SINGULAR * total * second  # else all codes are one and the same
        scale = ratio(total * dot - first * sum_values, determinant)
        offset = ratio(second * sum_values - first * dot, determinant)
        scale = torch.where(varied, scale, torch.zeros_like(scale))
        offset = torch.where(varied, offset, sum_values / total)
        if self._below:
            above = offset > 0
            scale = torch.where(above, ratio(dot, second), scale)
            offset = offset.clamp_max(0)
        error = self._sum_squares + scale * (scale * second - 2 * dot)
        error += offset * (offset * total - 2 * sum_values + 2 * scale * first)
        return scale, offset, error


def _peak(values: Tensor) -> Tensor:
    """The entry of largest magnitude along the first dimension, with its sign."""
    low, high = values.amin(0), values.amax(0)
    return torch.where(-low > high, low, high)


def inverse_or_zero(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where the scale is 0 or too small to invert."""
    vanishes = scale.abs() < _TINY
    return torch.where(vanishes, torch.zeros_like(scale), 1 / scale)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator >= 0, and 0 where both vanish."""
    return numerator / denominator.clamp_min(_TINY)
