"""Stored weights as codes with scales per group: what the kernels for packed weights take.

Knows nothing of kernels. The law: (code - zero) * scale + offset, or table[code] * scale, computed
in float32, is what `dequantize` of the stored weight gives, bit for bit.

Taken are uniform groups of 2 to 8 bits; NF4 and FP4 whose blocks do not cross rows, with
double-quantized scales multiplied out; all quantized types of ggml. The scales of scales of
K-quants and IQ4_XS are multiplied out, to a float32 scale (and offset) per sub-block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llmopt.formats.codebook import CodebookWeight, codebook
from llmopt.formats.gguf_blocks import GgufWeight
from llmopt.formats.quantized import QuantizedWeight, StoredWeight


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """An [O, K] matrix as codes; groups are runs of K / G columns.

    codes: uint8 [O, K], below 2^bits; bits: at most 8
    scales: [O, G]; offsets: float32 [O, G] or None
    zeros: uint8 [O, G], or one number for all
    table: float32 [16], the value of each code, or None
    order: int64 [K], the column of the weight that each column of codes is; None: in order
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | int
    offsets: torch.Tensor | None
    table: torch.Tensor | None
    order: torch.Tensor | None
    bits: int
    label: str

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def whole_bits(self) -> int:
        """Bits of the nibble or byte that holds a code."""
        return 4 if self.bits <= 4 else 8


def has_codes(weight: StoredWeight) -> bool:
    """Whether a weight is stored in a way of which some can be taken."""
    return isinstance(weight, QuantizedWeight | CodebookWeight | GgufWeight)


def coded_weight(weight: StoredWeight) -> CodedWeight | None:
    """A stored weight as codes, or None if it is stored in another way."""
    if isinstance(weight, QuantizedWeight):
        return _uniform(weight)
    if isinstance(weight, CodebookWeight):
        return _codebook(weight)
    if isinstance(weight, GgufWeight):
        return _ggml(weight)
    return None


def stack_coded(weights: Sequence[CodedWeight]) -> CodedWeight | None:
    """One weight of matrices that share their input (q, k, v; gate, up), or None if they differ in
    more than their values.
    """
    first = weights[0]
    if not all(_alike(first, weight) for weight in weights[1:]):
        return None
    zeros = [weight.zeros for weight in weights if isinstance(weight.zeros, torch.Tensor)]
    offsets = [weight.offsets for weight in weights if weight.offsets is not None]
    return replace(
        first,
        codes=torch.cat([weight.codes for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        zeros=torch.cat(zeros) if zeros else first.zeros,
        offsets=torch.cat(offsets) if offsets else None,
    )


def is_same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether two tensors are equal, or both are absent."""
    return a is b if a is None or b is None else torch.equal(a, b)


def _alike(a: CodedWeight, b: CodedWeight) -> bool:
    """Whether two weights differ in their values only; the label stands for constant zeros."""
    return is_same(a.table, b.table) and is_same(a.order, b.order) and _form(a) == _form(b)


def _form(weight: CodedWeight) -> tuple[object, ...]:
    return (
        weight.label,
        weight.bits,
        weight.group_size,
        weight.codes.shape[1],
        weight.scales.dtype,
        isinstance(weight.zeros, int),
        weight.offsets is None,
    )


def _uniform(weight: QuantizedWeight) -> CodedWeight:
    order = weight.column_order()
    return CodedWeight(
        codes=weight.codes if order is None else weight.codes[:, order],
        scales=weight.scales,
        zeros=weight.spec.midpoint if weight.zeros is None else weight.zeros,
        offsets=None,
        table=None,
        order=order,
        bits=weight.spec.bits,
        label=f"w{weight.spec.bits}a16",
    )


def _codebook(weight: CodebookWeight) -> CodedWeight | None:
    rows, columns = weight.shape
    if columns % weight.block_size:
        return None
    table = codebook(weight.kind, weight.codes.device)
    scales = weight.absmax.view(rows, -1)
    return CodedWeight(weight.codes, scales, 0, None, table, None, bits=4, label=weight.label)


def _ggml(weight: GgufWeight) -> CodedWeight | None:
    layout = weight.type.layout
    if layout is None:
        return None
    rows, columns = weight.shape
    fields = layout.unpack(weight.blocks.reshape(-1, layout.num_bytes))
    scales = fields.scale.view(-1, 1)
    if fields.sub_scales is not None:
        scales = scales.float() * fields.sub_scales.float()
    offsets = None
    if fields.offset is not None:
        offsets = fields.offset.float().view(-1, 1)
        if fields.sub_offsets is not None:
            offsets = -(offsets * fields.sub_offsets.float())
        offsets = offsets.reshape(rows, -1)
    table = None
    if layout.levels is not None:
        table = torch.tensor(layout.levels, dtype=torch.float32, device=weight.blocks.device)
    return CodedWeight(
        codes=fields.codes.reshape(rows, columns),
        scales=scales.reshape(rows, -1),
        zeros=0 if table is not None else layout.midpoint,
        offsets=offsets,
        table=table,
        order=None,
        bits=layout.code_bits,
        label=weight.label,
    )
