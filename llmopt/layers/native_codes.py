"""Stored weights as the compiled CPU kernels take them: codes with their scales as they are stored.

Knows nothing of the kernels' layout. The law: what is packed is what `dequantize` of the stored
weight computes from, scale for scale; only NF4's and FP4's levels are rounded, to 8 bits. The small
scales of K-quants stay small integers, so that a product reads no more bytes than the file has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llmopt.formats.gguf_blocks import GgufWeight
from llmopt.formats.quantized import StoredWeight
from llmopt.layers.codes import CodedWeight, coded_weight, is_same
from llmopt_kernels.wna8.native import GroupNumbers, can_pack_groups

_LARGEST_LEVEL = 127.0
_LEVEL_FACTORS = 1024  # roundings of a table of levels that are tried


@dataclass(frozen=True, slots=True)
class NativeCodes:
    """A weight [O, K] for `pack_codes`; the fields are its arguments, `label` names the scheme."""

    codes: torch.Tensor
    scales: GroupNumbers
    zeros: torch.Tensor | int
    offsets: GroupNumbers | None
    table: torch.Tensor | None
    order: torch.Tensor | None
    bits: int
    label: str


def native_codes(weight: StoredWeight) -> NativeCodes | None:
    """A stored weight as codes, or None if the kernels do not take it."""
    coded = coded_weight(weight)
    if coded is None or not can_pack_groups(coded.codes.shape[1], coded.group_size):
        return None
    if isinstance(weight, GgufWeight):
        return _ggml(weight, coded)
    label = coded.label.removesuffix("a16")
    if coded.table is None:
        scales = GroupNumbers(coded.scales)
        return NativeCodes(
            coded.codes, scales, coded.zeros, None, None, coded.order, coded.bits, label
        )
    scale, levels = whole_levels(coded.table)
    scales = GroupNumbers(coded.scales.float() * scale)
    return NativeCodes(coded.codes, scales, 0, None, levels, coded.order, coded.bits, label)


def stack_native(weights: Sequence[NativeCodes]) -> NativeCodes | None:
    """One weight of matrices that share their input, or None if they differ in more than their
    values.
    """
    first = weights[0]
    if not all(_alike(first, weight) for weight in weights[1:]):
        return None
    zeros = [weight.zeros for weight in weights if isinstance(weight.zeros, torch.Tensor)]
    offsets = [weight.offsets for weight in weights if weight.offsets is not None]
    return replace(
        first,
        codes=torch.cat([weight.codes for weight in weights]),
        scales=_stack_numbers([weight.scales for weight in weights]),
        zeros=torch.cat(zeros) if zeros else first.zeros,
        offsets=_stack_numbers(offsets) if offsets else None,
    )


def whole_levels(table: torch.Tensor) -> tuple[float, torch.Tensor]:
    """A scale and whole numbers of 8 bits [16] whose products come close to the levels [16]: of the
    roundings that fit, the one with the smallest squared error.
    """
    factors = torch.linspace(0.5, 1.0, _LEVEL_FACTORS) * (_LARGEST_LEVEL / table.abs().max())
    rounded = (table * factors.unsqueeze(1)).round()
    scales = (rounded @ table) / rounded.square().sum(dim=1)
    errors = (rounded * scales.unsqueeze(1) - table).square().sum(dim=1)
    best = int(errors.argmin())
    return float(scales[best]), rounded[best]


def _ggml(weight: GgufWeight, coded: CodedWeight) -> NativeCodes:
    layout = weight.type.layout
    assert layout is not None, "only types with blocks have codes"
    rows = len(coded.codes)
    fields = layout.unpack(weight.blocks.reshape(-1, layout.num_bytes))
    scales = GroupNumbers(fields.scale.reshape(rows, -1))
    if fields.sub_scales is not None:
        small = fields.sub_scales.to(torch.int8).reshape(rows, -1)
        scales = GroupNumbers(small, scales.values)
    offsets = None
    if fields.offset is not None:
        offsets = GroupNumbers(fields.offset.reshape(rows, -1))
        if fields.sub_offsets is not None:
            small = fields.sub_offsets.to(torch.uint8).reshape(rows, -1)
            offsets = GroupNumbers(small, offsets.values)
    return NativeCodes(
        coded.codes,
        scales,
        coded.zeros,
        offsets,
        coded.table,
        coded.order,
        coded.bits,
        coded.label,
    )


def _stack_numbers(numbers: Sequence[GroupNumbers]) -> GroupNumbers:
    shared = [each.shared for each in numbers if each.shared is not None]
    return GroupNumbers(
        torch.cat([each.values for each in numbers]), torch.cat(shared) if shared else None
    )


def _alike(a: NativeCodes, b: NativeCodes) -> bool:
    """Whether two weights differ in their values only; the label stands for constant zeros."""
    return is_same(a.table, b.table) and is_same(a.order, b.order) and _form(a) == _form(b)


def _form(weight: NativeCodes) -> tuple[object, ...]:
    offsets = weight.offsets
    return (
        weight.label,
        weight.bits,
        weight.codes.shape[1],
        weight.scales.values.shape[1],
        weight.scales.values.dtype,
        isinstance(weight.zeros, int),
        None if offsets is None else offsets.values.dtype,
    )
