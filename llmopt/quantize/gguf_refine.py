"""The contents of ggml blocks that fit given weights: stored scales, stored offsets, codes.

Pure maths; knows nothing of bits, rows or files. The law: every block is judged with the scales as
they are stored (float16, few-bit multiples), never with the ones that were wished for, and the best
of all that were judged wins.

Method: start from the ideal scales of the sub-blocks; then, in turn, round the weights, solve for
the scales that suit the codes, and round these. ggml does the first two steps once.

Legend: E elements of a sub-block, S sub-blocks of a block (1 in types without), N blocks. `values`
and `cost` are float32 [E, S, N].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.quantize.gguf_search import (
    SINGULAR,
    AffineFit,
    Levels,
    fit_affine,
    fit_scale,
    inverse_or_zero,
    ratio,
)

_SUPER_WIDTHS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)  # for the scales of scales


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried: widths of the range at first, rounds of polishing there and after."""

    widths: tuple[float, ...]
    rounds: int
    refinements: int


@dataclass(frozen=True, slots=True)
class FittedBlocks:
    """What `BlockFields` holds, with blocks last: codes uint8 [E, S, N], scale and offset float16
    [N], sub_scales and sub_offsets int16 [S, N]; None where the type has none.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None = None
    sub_scales: Tensor | None = None
    sub_offsets: Tensor | None = None


class _Best:
    """The parameters with the smallest error so far, for every block on its own."""

    def __init__(self) -> None:
        self._error: Tensor | None = None
        self._kept: tuple[Tensor, ...] = ()

    def offer(self, error: Tensor, *found: Tensor) -> None:
        """Keep `found`, each [N] or [S, N], in the blocks where `error` [N] is smaller."""
        if self._error is None:
            self._error, self._kept = error, found
            return
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        pairs = zip(found, self._kept, strict=True)
        self._kept = tuple(torch.where(better, new, old) for new, old in pairs)

    def kept(self) -> tuple[Tensor, ...]:
        """What was offered and is best."""
        return self._kept


def fit_blocks(values: Tensor, cost: Tensor, levels: Levels, effort: Effort) -> FittedBlocks:
    """Blocks of one scale each: q4_0, q5_0, q8_0, iq4_nl."""
    flat, flat_cost = values.flatten(0, 1), cost.flatten(0, 1)
    weighted = flat * flat_cost
    scale = fit_scale(flat, flat_cost, levels, effort.widths, effort.rounds)
    best = _Best()
    for _ in range(effort.refinements + 1):
        stored = scale.half()
        chosen = levels.nearest(flat * inverse_or_zero(stored.float()))
        best.offer(_squared_error(flat, chosen * stored.float(), flat_cost), stored)
        scale = ratio((weighted * chosen).sum(0), (chosen.square() * flat_cost).sum(0))
    (stored,) = best.kept()
    return FittedBlocks(levels.codes(values * inverse_or_zero(stored.float())), stored)


def fit_offset_blocks(values: Tensor, cost: Tensor, top: int, effort: Effort) -> FittedBlocks:
    """Blocks of one scale and one offset each: q4_1, q5_1."""
    flat, flat_cost = values.flatten(0, 1), cost.flatten(0, 1)
    problem = AffineFit(flat, flat_cost, flat * flat_cost, below=False)
    scale, offset = fit_affine(flat, flat_cost, top, effort.widths, effort.rounds, below=False)
    best = _Best()
    for _ in range(effort.refinements + 1):
        stored, floor = scale.half(), offset.half()
        codes = _affine_codes(flat, stored.float(), floor.float(), top)
        approximation = codes * stored.float() + floor.float()
        best.offer(_squared_error(flat, approximation, flat_cost), stored, floor)
        scale, offset, _error = problem.solve(codes)
    stored, floor = best.kept()
    codes = _affine_codes(values, stored.float(), floor.float(), top)
    return FittedBlocks(codes.to(torch.uint8), stored, floor)


def fit_super_blocks(
    values: Tensor, cost: Tensor, levels: Levels, multiples: tuple[int, int], effort: Effort
) -> FittedBlocks:
    """Blocks whose sub-blocks have integer multiples of one scale: q3_k, q6_k, iq4_xs.

    multiples: the lowest and the highest multiple.
    """
    weighted = values * cost
    steps = Levels(*multiples)
    ideal = fit_scale(values, cost, levels, effort.widths, effort.rounds)
    chosen = levels.nearest(values * inverse_or_zero(ideal))
    curvature = (chosen.square() * cost).sum(0)
    scale = fit_scale(ideal, curvature, steps, _SUPER_WIDTHS, effort.rounds)
    best = _Best()
    for _ in range(effort.refinements + 1):
        stored = scale.half()
        sub_scales = steps.nearest(ideal * inverse_or_zero(stored.float()))
        actual = sub_scales * stored.float()
        chosen = levels.nearest(values * inverse_or_zero(actual))
        best.offer(_squared_error(values, chosen * actual, cost).sum(0), stored, sub_scales)
        curvature, dot = (chosen.square() * cost).sum(0), (weighted * chosen).sum(0)
        ideal = torch.where(curvature > 0, ratio(dot, curvature), ideal)
        scale = ratio((sub_scales * dot).sum(0), (sub_scales.square() * curvature).sum(0))
    stored, sub_scales = best.kept()
    codes = levels.codes(values * inverse_or_zero(sub_scales * stored.float()))
    return FittedBlocks(codes, stored, sub_scales=sub_scales.to(torch.int16))


def fit_offset_super_blocks(
    values: Tensor, cost: Tensor, top: int, highest: int, effort: Effort
) -> FittedBlocks:
    """Blocks whose sub-blocks have multiples 0 .. `highest` of a scale and of an offset, the
    latter subtracted: q2_k, q4_k, q5_k.
    """
    problem = AffineFit(values, cost, values * cost, below=True)
    steps = Levels(0, highest)
    ideal, low = fit_affine(values, cost, top, effort.widths, effort.rounds, below=True)
    curvature = (_affine_codes(values, ideal, low, top).square_() * cost).sum(0)
    scale = fit_scale(ideal, curvature, steps, _SUPER_WIDTHS, effort.rounds)
    offset = fit_scale(-low, cost.sum(0), steps, _SUPER_WIDTHS, effort.rounds)
    best = _Best()
    for _ in range(effort.refinements + 1):
        stored, stored_offset = scale.half(), offset.half()
        sub_scales = steps.nearest(ideal * inverse_or_zero(stored.float()))
        sub_offsets = steps.nearest(-low * inverse_or_zero(stored_offset.float()))
        actual, floor = sub_scales * stored.float(), -(sub_offsets * stored_offset.float())
        codes = _affine_codes(values, actual, floor, top)
        error = _squared_error(values, codes * actual + floor, cost).sum(0)
        best.offer(error, stored, stored_offset, sub_scales, sub_offsets)
        ideal, low, _error = problem.solve(codes)
        scale, offset = _joint_scales(values, cost, codes, sub_scales, sub_offsets)
    stored, stored_offset, sub_scales, sub_offsets = best.kept()
    floor = -(sub_offsets * stored_offset.float())
    codes = _affine_codes(values, sub_scales * stored.float(), floor, top)
    return FittedBlocks(
        codes.to(torch.uint8),
        stored,
        stored_offset,
        sub_scales.to(torch.int16),
        sub_offsets.to(torch.int16),
    )


def _joint_scales(
    values: Tensor, cost: Tensor, codes: Tensor, sub_scales: Tensor, sub_offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """The scale and offset [N] that suit codes and multiples best: least squares in two unknowns,
    or in each alone where the two are not told apart.
    """
    costly = codes * cost
    a = (sub_scales.square() * (costly * codes).sum(0)).sum(0)
    b = (sub_scales * sub_offsets * costly.sum(0)).sum(0)
    c = (sub_offsets.square() * cost.sum(0)).sum(0)
    u = (sub_scales * (costly * values).sum(0)).sum(0)
    v = -(sub_offsets * (cost * values).sum(0)).sum(0)
    determinant = a * c - b * b
    solvable = determinant > SINGULAR * a * c
    scale = torch.where(solvable, ratio(c * u + b * v, determinant), ratio(u, a))
    offset = torch.where(solvable, ratio(a * v + b * u, determinant), ratio(v, c))
    return scale.clamp_min(0), offset.clamp_min(0)


def _affine_codes(values: Tensor, scale: Tensor, offset: Tensor, top: int) -> Tensor:
    return (values - offset).mul_(inverse_or_zero(scale)).round_().clamp_(0, top)


def _squared_error(values: Tensor, approximation: Tensor, cost: Tensor) -> Tensor:
    return (approximation - values).square_().mul_(cost).sum(0)
