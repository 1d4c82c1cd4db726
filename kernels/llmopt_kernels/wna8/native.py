"""Weights as codes with scales per group, for the compiled product with int8 inputs.

Knows nothing of models or files. The law: the packed weight holds exactly the codes, scales, zero
points and offsets that it was made from, in the types they had; only tables of levels must be whole
numbers of 8 bits. The layout is described in linear.h.
"""

from dataclasses import dataclass

import torch

from llmopt_kernels.native.linear_weight import (
    NUMBER_TYPES,
    ROW_BLOCK,
    STORAGE,
    NativeWeight,
    fill_up,
    in_blocks,
    native_weight,
)

STEPS = (32, 16)  # columns that share a scale of x: 64 would double what rounding costs in KLD
ROW_STEP = 32  # where a whole row has one scale: rows are filled up to a multiple of it
CODE_BITS = (4, 5, 6, 8)  # that are kept; codes of fewer bits take the next more
_SMALL_INTEGERS = 4  # kInt8 of linear.h
_LEVEL_ZERO = 128  # levels are kept as unsigned bytes: value + 128


@dataclass(frozen=True, slots=True)
class GroupNumbers:
    """One number per row and group [O, G]: as it is (float32, float16, bfloat16), or, with `shared`
    float16 [O, G / n], small integers (int8; offsets: uint8) that multiply the shared number.
    """

    values: torch.Tensor
    shared: torch.Tensor | None = None

    @property
    def type_code(self) -> int:
        """The `NumberType` of linear.h."""
        return NUMBER_TYPES[self.values.dtype] if self.shared is None else _SMALL_INTEGERS

    @property
    def groups_per_super(self) -> int:
        """Groups that share a float16 number."""
        return 1 if self.shared is None else self.values.shape[1] // self.shared.shape[1]


def activation_step(group_size: int) -> int | None:
    """Columns that share a scale of x, for a weight in groups of this size; None: no step fits."""
    return next((step for step in STEPS if group_size % step == 0), None)


def can_pack_groups(columns: int, group_size: int) -> bool:
    """Whether rows of `columns` weights in such groups can be packed."""
    return group_size == columns or activation_step(group_size) is not None


def pack_codes(
    codes: torch.Tensor,
    scales: GroupNumbers,
    *,
    bits: int,
    zeros: torch.Tensor | int = 0,
    offsets: GroupNumbers | None = None,
    table: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    parts: int = 1,
) -> NativeWeight:
    """Lay out (level(code) - zero) * scale + offset.

    codes: uint8 [O, K] below 2^bits, at most 8 bits; zeros: uint8 [O, G] or one number; table:
    [16], the signed levels of 4-bit codes within -128 .. 127, whole numbers; order: [K], the column
    of x that each column of codes takes; bias: [O]; parts: int8 numbers for each input, 1 or 2.
    Groups as `can_pack_groups` says.
    """
    rows, columns = codes.shape
    kept_bits = next(kept for kept in CODE_BITS if bits <= kept)
    group_size = columns // scales.values.shape[1]
    step = activation_step(group_size)
    if group_size == columns and (step is None or step < ROW_STEP):
        step = ROW_STEP
        group_size = -(-columns // step) * step
    assert step is not None, "groups are multiples of 16, or whole rows"
    padded_in = -(-columns // group_size) * group_size
    tensors = {
        "data": _pack_bits(fill_up(codes, padded_in), kept_bits, step),
        "scales": in_blocks(scales.values),
    }
    if scales.shared is not None:
        tensors["super_scales"] = in_blocks(scales.shared)
    if isinstance(zeros, torch.Tensor):
        tensors["zeros"] = in_blocks(zeros)
    if offsets is not None:
        tensors["offsets"] = in_blocks(offsets.values)
        if offsets.shared is not None:
            tensors["super_offsets"] = in_blocks(offsets.shared)
    if table is not None:
        tensors["table"] = (table.round().to(torch.int16) + _LEVEL_ZERO).to(torch.uint8)
    zero = _LEVEL_ZERO if table is not None else 0 if isinstance(zeros, torch.Tensor) else zeros
    numbers = {
        "storage": STORAGE[f"code{kept_bits}"],
        "scale_type": scales.type_code,
        "offset_type": 0 if offsets is None else offsets.type_code,
        "zero": zero,
        "group_size": group_size,
        "groups_per_super": scales.groups_per_super,
        "step": step,
        "padded_in": padded_in,
    }
    return native_weight(tensors, numbers, (rows, columns), bias, order, parts)


def _pack_bits(codes: torch.Tensor, bits: int, step: int) -> torch.Tensor:
    """uint8 [O, K] to [O / 16, ...] as linear.h lays them out."""
    runs = _in_runs(codes)
    if bits == 8:
        return runs
    runs = runs.view(len(runs), codes.shape[1] // step, step // 8, 2, ROW_BLOCK, 4)
    low = runs & 15
    parts = [(low[:, :, :, 0] | (low[:, :, :, 1] << 4)).flatten(2)]
    if bits > 4:
        planes = [_pack_booleans(runs >> bit & 1) for bit in range(4, bits)]
        parts.append(torch.stack(planes, dim=3).flatten(2))
    return torch.cat(parts, dim=2).contiguous()


def _in_runs(codes: torch.Tensor) -> torch.Tensor:
    """[O, K] to [O / 16, K / 4, 16, 4]."""
    blocks = codes.reshape(len(codes) // ROW_BLOCK, ROW_BLOCK, -1, 4)
    return blocks.transpose(1, 2).contiguous()


def _pack_booleans(bits: torch.Tensor) -> torch.Tensor:
    """Zeros and ones uint8 [B, S, N, 2, 16, 4] to bytes [B, S, N, 16], the first one lowest."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.view(*bits.shape[:3], -1, 8) << places).sum(dim=4, dtype=torch.uint8)
