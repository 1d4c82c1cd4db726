"""Weights of 4 or 8 bits in the layout that the Triton kernels read, and the way there and back.

Knows nothing of files, schemes or kernels. The law: `unpack_codes` gives back the codes that were
packed, and `dequantize` is the definition of the weight:

w[o, k] = (code[o, k] - zero[g, o]) * scale[g, o] + offset[g, o]   or   table[code[o, k]] * scale

with g = k // group_size. Layout: the tensor cores' fragment of a matrix A (PTX ISA, m16n8k16 and
wgmma alike) gives the four lanes of a row, for each 16 columns, the columns 2q, 2q + 1, 2q + 8 and
2q + 9, lane q. So in each block of 128 columns the words of lane q lie side by side, and hold what
it needs in the order in which it needs it: unpacking takes shifts and masks, and no exchange.

* 4 bits: word i of lane q (i < 4) has columns 32 i + 16 s + 8 h + 2 q + p in its nibble
  4 p + 2 s + h, so that one mask gives two neighbours, 16 bits apart.
* 8 bits: word i of lane q (i < 8) has columns 16 i + 8 h + 2 q + p in its byte 2 h + p.

Rows and columns are filled up with zeros to multiples of 128.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

BLOCK = 128  # columns that are laid out together, and what both sides are multiples of
MIN_GROUP = 16  # columns; groups are multiples of it


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """An [O, K] matrix for the kernels; `Op` and `Kp` are O and K filled up to multiples of 128.

    words:   int32 [Op, Kp * bits / 32]
    scales:  [G, Op] in the activation dtype where that holds them exactly, else float32
    zeros:   uint8 [G, Op], or None where all are `zero`
    offsets: float32 [G, Op], or None
    table:   float32 [16], the value of each code, or None: it is code - zero
    group_size: columns that share a scale; K: one group per row

    A stack of E matrices (a mixture of experts) has a dimension E in front of all but `table`.
    """

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    offsets: torch.Tensor | None
    table: torch.Tensor | None
    zero: int
    bits: int
    group_size: int
    shape: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads: all that is stored."""
        stored = (self.words, self.scales, self.zeros, self.offsets, self.table)
        return sum(tensor.nbytes for tensor in stored if tensor is not None)


def can_pack(columns: int, group_size: int) -> bool:
    """Whether the kernels take groups of this size: all of a row, or multiples of 16."""
    return group_size == columns or group_size % MIN_GROUP == 0


def pack(
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    bits: int,
    dtype: torch.dtype,
    zeros: torch.Tensor | int = 0,
    offsets: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> PackedWeight:
    """Lay out a weight, on the device where it is.

    codes: uint8 [O, K] below 2^bits (4 or 8); scales, offsets: [O, G]; zeros: uint8 [O, G], or one
    for all; table: float32 [16], with 4 bits and without zeros and offsets; dtype: of the
    activations.
    """
    rows, columns = codes.shape
    group_size = columns // scales.shape[1]
    assert bits in (4, 8), "codes are nibbles or bytes"
    assert can_pack(columns, group_size), "groups are rows, or multiples of 16 columns"
    exact = scales.to(dtype)
    scales = exact if torch.equal(exact.float(), scales.float()) else scales.float()
    return PackedWeight(
        words=_pack_words(codes, bits),
        scales=_by_group(scales),
        zeros=_by_group(zeros) if isinstance(zeros, torch.Tensor) else None,
        offsets=None if offsets is None else _by_group(offsets.float()),
        table=table,
        zero=0 if isinstance(zeros, torch.Tensor) else zeros,
        bits=bits,
        group_size=group_size,
        shape=(rows, columns),
    )


def unpack_codes(weight: PackedWeight) -> torch.Tensor:
    """The codes uint8 [O, K]."""
    rows, columns = weight.shape
    per_word = 32 // weight.bits
    shifts = weight.bits * torch.arange(per_word, device=weight.words.device, dtype=torch.int32)
    codes = (weight.words.unsqueeze(-1) >> shifts) & ((1 << weight.bits) - 1)
    blocks = codes.view(len(codes), -1, *_stored_dims(weight.bits))
    natural = blocks.permute(0, 1, *(2 + dim for dim in _to_columns(weight.bits)))
    return natural.reshape(len(codes), -1)[:rows, :columns].to(torch.uint8)


def dequantize(weight: PackedWeight) -> torch.Tensor:
    """The weight, float32 [O, K], by the definition."""
    rows = weight.shape[0]

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.float().T[:rows].repeat_interleave(weight.group_size, dim=1)

    codes = unpack_codes(weight)
    if weight.table is not None:
        levels = weight.table[codes.int()]
    else:
        zeros = weight.zero if weight.zeros is None else spread(weight.zeros)
        levels = codes.float() - zeros
    values = levels * spread(weight.scales)
    return values if weight.offsets is None else values + spread(weight.offsets)


def _stored_dims(bits: int) -> tuple[int, ...]:
    """The sides of a block of 128 columns as stored: q, i, then the bits of a code's place."""
    return (4, 4, 2, 2, 2) if bits == 4 else (4, 8, 2, 2)


def _to_columns(bits: int) -> tuple[int, ...]:
    """The stored sides in the order of the columns: i, s, h, q, p with 4 bits, else i, h, q, p."""
    return (1, 3, 4, 0, 2) if bits == 4 else (1, 2, 0, 3)


def _pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    rows, columns = codes.shape
    padded = F.pad(codes, (0, -columns % BLOCK, 0, -rows % BLOCK))
    order, stored = _to_columns(bits), _stored_dims(bits)
    natural = padded.view(len(padded), -1, *(stored[dim] for dim in order))
    inverse = sorted(range(len(order)), key=order.__getitem__)
    places = natural.permute(0, 1, *(2 + dim for dim in inverse)).reshape(
        len(padded), -1, 32 // bits
    )
    words = torch.zeros(places.shape[:2], dtype=torch.int32, device=codes.device)
    for place in range(32 // bits):
        words |= places[:, :, place].to(torch.int32) << (bits * place)
    return words


def _by_group(values: torch.Tensor) -> torch.Tensor:
    """[O, G] as [G, Op], filled up with zeros."""
    return F.pad(values.T, (0, -len(values) % BLOCK)).contiguous()
