"""How ggml lays out the blocks of its quantized types, bit by bit.

Knows nothing of files or of how codes are chosen. The law: `pack` and `unpack` are inverses of each
other on every value that fits. Vectorised over blocks; legend: N blocks, E elements of a block,
S sub-blocks of a block.

Format: block structs of ggml (ggml-common.h), dequantize_row_* of ggml (ggml-quants.c).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

NON_LINEAR_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, slots=True)
class BlockFields:
    """The contents of blocks, out of their bits.

    codes:       uint8 [N, E]
    scale:       float16 [N]
    offset:      float16 [N], or None for a type without one
    sub_scales:  int16 [N, S] multiples of `scale`, or None for a type without sub-blocks
    sub_offsets: int16 [N, S] multiples of `offset`, or None

    A value is scale * sub_scale * level(code), plus the offset in types without sub-blocks and
    minus offset * sub_offset in those with them.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    sub_scales: torch.Tensor | None = None
    sub_offsets: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Planes:
    """Small codes spread over bytes: runs of `run` bytes hold `run` codes in their lowest `bits`
    bits, the next `run` codes in the next higher bits, and so on.
    """

    bits: int
    run: int

    def unpack(self, data: torch.Tensor) -> torch.Tensor:
        """uint8 [N, bytes] to uint8 [N, bytes * 8 // bits]."""
        runs = data.reshape(len(data), -1, 1, self.run)
        shifts = torch.arange(0, 8, self.bits, dtype=torch.uint8, device=data.device)
        codes = (runs >> shifts.view(-1, 1)) & ((1 << self.bits) - 1)
        return codes.reshape(len(data), -1)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Invert `unpack`."""
        planes = codes.reshape(len(codes), -1, 8 // self.bits, self.run)
        data = planes[:, :, 0].clone()
        for plane in range(1, 8 // self.bits):
            data |= planes[:, :, plane] << (plane * self.bits)
        return data.reshape(len(codes), -1)


SubScales = tuple[torch.Tensor, torch.Tensor | None]  # sub_scales, sub_offsets: int16 [N, S]


@dataclass(frozen=True, slots=True)
class SubScaleLayout:
    """How the scales (and offsets) of sub-blocks are stored in `num_bytes` bytes of a block.

    `scale_range` are the lowest and the highest sub-scale; sub-offsets are 0 .. `max_offset`.
    """

    num_sub_blocks: int
    num_bytes: int
    scale_range: tuple[int, int]
    max_offset: int | None
    unpack: Callable[[torch.Tensor], SubScales]
    pack: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """One block type: its parts in the order of the bytes, and how codes become levels.

    parts: names out of "scale", "offset" (float16), "sub" (sub-scales), "low" and "high" (bits of
           the codes), with their sizes in bytes
    levels: the level of every code, in rising order; None: code - midpoint
    """

    elements: int
    parts: tuple[tuple[str, int], ...]
    low: Planes
    high: Planes | None = None
    midpoint: int = 0
    levels: tuple[int, ...] | None = None
    sub: SubScaleLayout | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of a block."""
        return sum(size for _, size in self.parts)

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return self.low.bits + (self.high.bits if self.high else 0)

    @property
    def has_offset(self) -> bool:
        """Whether blocks have an offset beside their scale."""
        return any(name == "offset" for name, _ in self.parts)

    def unpack(self, blocks: torch.Tensor) -> BlockFields:
        """Blocks uint8 [N, num_bytes] to their contents."""
        sizes = [size for _, size in self.parts]
        names = (name for name, _ in self.parts)
        part = dict(zip(names, torch.split(blocks, sizes, dim=1), strict=True))
        codes = self.low.unpack(part["low"])
        if self.high is not None:
            codes = codes | (self.high.unpack(part["high"]) << self.low.bits)
        if self.low.bits == 8:
            codes = codes ^ self.midpoint  # stored as int8
        sub_scales, sub_offsets = self.sub.unpack(part["sub"]) if self.sub else (None, None)
        offset = _half(part["offset"]) if "offset" in part else None
        return BlockFields(codes, _half(part["scale"]), offset, sub_scales, sub_offsets)

    def pack(self, fields: BlockFields) -> torch.Tensor:
        """Invert `unpack`."""
        codes = fields.codes ^ self.midpoint if self.low.bits == 8 else fields.codes
        part = {
            "scale": fields.scale.view(-1, 1).view(torch.uint8),
            "low": self.low.pack(codes & ((1 << self.low.bits) - 1)),
        }
        if self.high is not None:
            part["high"] = self.high.pack(codes >> self.low.bits)
        if fields.offset is not None:
            part["offset"] = fields.offset.view(-1, 1).view(torch.uint8)
        if self.sub is not None:
            assert fields.sub_scales is not None, "a type with sub-blocks has their scales"
            part["sub"] = self.sub.pack(fields.sub_scales, fields.sub_offsets)
        return torch.cat([part[name] for name, _ in self.parts], dim=1)

    def dequantize(self, fields: BlockFields) -> torch.Tensor:
        """The values, float32 [N, E], computed in the order of operations of ggml."""
        num_sub_blocks = self.sub.num_sub_blocks if self.sub else 1
        levels = self._levels(fields.codes).view(len(fields.codes), num_sub_blocks, -1)
        scales = fields.scale.float().view(-1, 1)
        if fields.sub_scales is not None:
            scales = scales * fields.sub_scales.float()
        values = levels * scales.unsqueeze(-1)
        if fields.offset is not None:
            offsets = fields.offset.float().view(-1, 1)
            if fields.sub_offsets is not None:
                offsets = -(offsets * fields.sub_offsets.float())
            values = values + offsets.unsqueeze(-1)
        return values.view(len(fields.codes), self.elements)

    def _levels(self, codes: torch.Tensor) -> torch.Tensor:
        if self.levels is None:
            return codes.float() - self.midpoint
        return torch.tensor(self.levels, dtype=torch.float32, device=codes.device)[codes.int()]


def _half(data: torch.Tensor) -> torch.Tensor:
    """Two bytes per block as float16 [N]."""
    return data.contiguous().view(torch.float16).view(-1)


_NIBBLES_OF_16 = Planes(bits=4, run=16)
_BITS_IN_ORDER = Planes(bits=1, run=1)
_BITS_OF_32 = Planes(bits=1, run=32)


def _unpack_nibble_pairs(data: torch.Tensor) -> SubScales:
    """Q2_K: a scale in each low nibble, an offset in each high one."""
    return (data & 15).to(torch.int16), (data >> 4).to(torch.int16)


def _pack_nibble_pairs(scales: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    assert offsets is not None, "Q2_K has offsets"
    return (scales | (offsets << 4)).to(torch.uint8)


_Q3_LOW, _Q3_HIGH = Planes(bits=4, run=8), Planes(bits=2, run=4)


def _unpack_16_of_6_bits(data: torch.Tensor) -> SubScales:
    """Q3_K: sixteen scales with a bias of 32; 8 bytes of low nibbles, 4 bytes of high bits."""
    low, high = _Q3_LOW.unpack(data[:, :8]), _Q3_HIGH.unpack(data[:, 8:])
    return (low | (high << 4)).to(torch.int16) - 32, None


def _pack_16_of_6_bits(scales: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    biased = (scales + 32).to(torch.uint8)
    return torch.cat([_Q3_LOW.pack(biased & 15), _Q3_HIGH.pack(biased >> 4)], dim=1)


def _unpack_8_pairs_of_6_bits(data: torch.Tensor) -> SubScales:
    """Q4_K and Q5_K: the first four scales and offsets with the high bits of the last four above
    them, then the low nibbles of the last four, scale and offset in one byte.
    """
    first, second, low = torch.split(data.to(torch.int16), 4, dim=1)
    scales = torch.cat([first & 63, (low & 15) | ((first >> 6) << 4)], dim=1)
    offsets = torch.cat([second & 63, (low >> 4) | ((second >> 6) << 4)], dim=1)
    return scales, offsets


def _pack_8_pairs_of_6_bits(scales: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    assert offsets is not None, "Q4_K and Q5_K have offsets"
    scales_a, scales_b = torch.split(scales, 4, dim=1)
    offsets_a, offsets_b = torch.split(offsets, 4, dim=1)
    first = scales_a | ((scales_b >> 4) << 6)
    second = offsets_a | ((offsets_b >> 4) << 6)
    low = (scales_b & 15) | ((offsets_b & 15) << 4)
    return torch.cat([first, second, low], dim=1).to(torch.uint8)


def _unpack_int8(data: torch.Tensor) -> SubScales:
    """Q6_K: signed bytes."""
    return data.contiguous().view(torch.int8).to(torch.int16), None


def _pack_int8(scales: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return scales.to(torch.int8).view(torch.uint8)


_IQ4_LOW, _IQ4_HIGH = Planes(bits=4, run=1), Planes(bits=2, run=1)


def _unpack_8_of_6_bits(data: torch.Tensor) -> SubScales:
    """IQ4_XS: eight scales with a bias of 32; 2 bytes of high bits, 4 bytes of low nibbles."""
    high, low = _IQ4_HIGH.unpack(data[:, :2]), _IQ4_LOW.unpack(data[:, 2:])
    return (low | (high << 4)).to(torch.int16) - 32, None


def _pack_8_of_6_bits(scales: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    biased = (scales + 32).to(torch.uint8)
    return torch.cat([_IQ4_HIGH.pack(biased >> 4), _IQ4_LOW.pack(biased & 15)], dim=1)


_SUB_Q2 = SubScaleLayout(16, 16, (0, 15), 15, _unpack_nibble_pairs, _pack_nibble_pairs)
_SUB_Q3 = SubScaleLayout(16, 12, (-32, 31), None, _unpack_16_of_6_bits, _pack_16_of_6_bits)
_SUB_Q4 = SubScaleLayout(8, 12, (0, 63), 63, _unpack_8_pairs_of_6_bits, _pack_8_pairs_of_6_bits)
_SUB_Q6 = SubScaleLayout(16, 16, (-128, 127), None, _unpack_int8, _pack_int8)
_SUB_IQ4 = SubScaleLayout(8, 6, (-32, 31), None, _unpack_8_of_6_bits, _pack_8_of_6_bits)

_D, _M = ("scale", 2), ("offset", 2)

LAYOUTS: dict[str, BlockLayout] = {
    "q4_0": BlockLayout(32, (_D, ("low", 16)), _NIBBLES_OF_16, midpoint=8),
    "q4_1": BlockLayout(32, (_D, _M, ("low", 16)), _NIBBLES_OF_16),
    "q5_0": BlockLayout(
        32, (_D, ("high", 4), ("low", 16)), _NIBBLES_OF_16, _BITS_IN_ORDER, midpoint=16
    ),
    "q5_1": BlockLayout(32, (_D, _M, ("high", 4), ("low", 16)), _NIBBLES_OF_16, _BITS_IN_ORDER),
    "q8_0": BlockLayout(32, (_D, ("low", 32)), Planes(bits=8, run=32), midpoint=128),
    "q2_k": BlockLayout(256, (("sub", 16), ("low", 64), _D, _M), Planes(2, 32), sub=_SUB_Q2),
    "q3_k": BlockLayout(
        256,
        (("high", 32), ("low", 64), ("sub", 12), _D),
        Planes(bits=2, run=32),
        _BITS_OF_32,
        midpoint=4,
        sub=_SUB_Q3,
    ),
    "q4_k": BlockLayout(256, (_D, _M, ("sub", 12), ("low", 128)), Planes(4, 32), sub=_SUB_Q4),
    "q5_k": BlockLayout(
        256,
        (_D, _M, ("sub", 12), ("high", 32), ("low", 128)),
        Planes(bits=4, run=32),
        _BITS_OF_32,
        sub=_SUB_Q4,
    ),
    "q6_k": BlockLayout(
        256,
        (("low", 128), ("high", 64), ("sub", 16), _D),
        Planes(bits=4, run=64),
        Planes(bits=2, run=32),
        midpoint=32,
        sub=_SUB_Q6,
    ),
    "iq4_nl": BlockLayout(32, (_D, ("low", 16)), _NIBBLES_OF_16, levels=NON_LINEAR_LEVELS),
    "iq4_xs": BlockLayout(
        256,
        (_D, ("sub", 6), ("low", 128)),
        _NIBBLES_OF_16,
        levels=NON_LINEAR_LEVELS,
        sub=_SUB_IQ4,
    ),
}
