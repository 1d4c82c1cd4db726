"""A weight matrix into ggml's blocks.

Knows nothing of files, models or which type a tensor should get. The law: what is minimised is
`sum importance * (weight - stored)^2` with the stored value exactly as `GgufWeight.dequantize`
gives it; importance is the mean squared input of a column, or 1. Same input, same bytes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmopt.errors import QuantizationError
from llmopt.formats.gguf_blocks import GgmlType, GgufWeight, ggml_type
from llmopt.formats.gguf_layouts import BlockFields, BlockLayout
from llmopt.quantize.gguf_refine import (
    Effort,
    FittedBlocks,
    fit_blocks,
    fit_offset_blocks,
    fit_offset_super_blocks,
    fit_super_blocks,
)
from llmopt.quantize.gguf_search import Levels
from llmopt.quantize.rounding import check_finite
from llmopt.quantize.threads import single_thread

_CHUNK_ELEMENTS = 1 << 16  # the working set of one chunk stays in the second-level cache
_GPU_CHUNK_ELEMENTS = 1 << 24  # large enough to hide the launches
_COLUMN_RUN = 64  # columns that torch sums at once: four registers of 16 floats
_SMALLEST_IMPORTANCE = 1e-4  # of the mean: a column that was never used still gets some care
_LOWEST_INT8 = -127  # ggml never writes -128, which kernels that negate bytes get wrong
_LARGEST_WEIGHT = 65504.0  # of float16, which holds the scales


def _steps(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(low + (high - low) * i / (count - 1) for i in range(count))


_EFFORTS = {
    "q4_0": Effort(_steps(0.65, 1.25, 13), 2, 2),
    "q5_0": Effort(_steps(0.8, 1.15, 13), 2, 2),
    "q8_0": Effort((1.0,), 2, 2),
    "iq4_nl": Effort(_steps(0.65, 1.25, 13), 2, 2),
    "q4_1": Effort(_steps(0.9, 1.3, 17), 2, 2),
    "q5_1": Effort(_steps(0.95, 1.15, 17), 2, 2),
    "q2_k": Effort(_steps(0.8, 2.0, 9), 2, 3),
    "q3_k": Effort(_steps(0.45, 1.45, 13), 2, 3),
    "q4_k": Effort(_steps(0.9, 1.3, 17), 2, 3),
    "q5_k": Effort(_steps(0.95, 1.15, 17), 2, 3),
    "q6_k": Effort(_steps(0.9, 1.1, 9), 2, 3),
    "iq4_xs": Effort(_steps(0.65, 1.25, 13), 2, 3),
}


@single_thread()
def encode(
    weight: Tensor, type_name: str, importance: Tensor | None = None, *, name: str = "the weight"
) -> GgufWeight:
    """Encode `weight` [O, K] as the ggml type `type_name`, such as "q4_k".

    importance: float [K] >= 0, the cost of an error in each input column; None: all equal.
    name: of the tensor, for error messages.
    Raises QuantizationError: an unknown type, rows that are not whole blocks, a NaN or infinity, or
    a weight too large for float16.
    """
    target = ggml_type(type_name)
    rows, columns = weight.shape
    row_bytes = target.row_bytes(columns)
    check_finite(name, weight)
    if target.layout is None:
        data = _plain_numbers(weight, target, name)
    else:
        cost = _column_cost(importance, columns, weight.device, name)
        if weight.numel() and float(weight.abs().max()) > _LARGEST_WEIGHT:
            raise _too_large(name, weight, target)
        data = _encode_blocks(weight, cost, target.layout, _EFFORTS[target.name])
    return GgufWeight(data.view(rows, row_bytes), target, (rows, columns))


def _plain_numbers(weight: Tensor, target: GgmlType, name: str) -> Tensor:
    assert target.dtype is not None, "a type without blocks is a plain one"
    stored = weight.to(target.dtype).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise _too_large(name, weight, target)
    return stored.view(torch.uint8)


def _encode_blocks(weight: Tensor, cost: Tensor, layout: BlockLayout, effort: Effort) -> Tensor:
    """The blocks of `weight` [O, K], uint8 [O * K / elements, bytes of a block].

    Chunks are padded to whole runs of columns: torch sums the columns beyond the last whole run in
    another order, and a block must not depend on its neighbours.
    """
    levels = _levels(layout, weight.device)
    values, costs = weight.reshape(-1, layout.elements), cost.view(-1, layout.elements)
    data = torch.empty(len(values), layout.num_bytes, dtype=torch.uint8, device=weight.device)
    chunk_elements = _CHUNK_ELEMENTS if weight.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    step = chunk_elements // layout.elements
    for start in range(0, len(values), step):
        chunk = values[start : start + step].float()
        padded = F.pad(chunk, (0, 0, 0, -len(chunk) % _COLUMN_RUN))
        place_in_row = torch.arange(start, start + len(padded), device=weight.device) % len(costs)
        turned_cost = _turned(costs[place_in_row], layout)
        fitted = _fit(_turned(padded, layout), turned_cost, layout, levels, effort)
        data[start : start + step] = layout.pack(_fields(fitted))[: len(chunk)]
    return data


def _column_cost(
    importance: Tensor | None, columns: int, device: torch.device, name: str
) -> Tensor:
    """The cost [K] of an error in each column: positive, 1 on average."""
    if importance is None:
        return torch.ones(columns, device=device)
    assert importance.shape == (columns,), "one importance per input column"
    check_finite(f"the importance of {name}", importance)
    cost = importance.to(device, torch.float32)
    mean = cost.mean()
    if mean <= 0:
        return torch.ones(columns, device=device)
    return (cost / mean).clamp_min(_SMALLEST_IMPORTANCE)


def _levels(layout: BlockLayout, device: torch.device) -> Levels:
    if layout.levels is not None:
        return Levels.of_table(layout.levels, device)
    lowest = max(-layout.midpoint, _LOWEST_INT8)
    return Levels(lowest, (1 << layout.code_bits) - 1 - layout.midpoint, layout.midpoint)


def _turned(blocks: Tensor, layout: BlockLayout) -> Tensor:
    """[blocks, elements] as [elements of a sub-block, sub-blocks of a block, blocks]: sums over the
    first dimension are fast.
    """
    num_sub_blocks = layout.sub.num_sub_blocks if layout.sub else 1
    return blocks.view(len(blocks), num_sub_blocks, -1).permute(2, 1, 0).contiguous()


def _fit(
    values: Tensor, cost: Tensor, layout: BlockLayout, levels: Levels, effort: Effort
) -> FittedBlocks:
    sub = layout.sub
    if not layout.has_offset:
        if sub is None:
            return fit_blocks(values, cost, levels, effort)
        return fit_super_blocks(values, cost, levels, sub.scale_range, effort)
    if sub is None:
        return fit_offset_blocks(values, cost, levels.highest, effort)
    return fit_offset_super_blocks(values, cost, levels.highest, sub.scale_range[1], effort)


def _fields(fitted: FittedBlocks) -> BlockFields:
    """Blocks first, and the elements of a block in one row."""

    def turned(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.T.contiguous()

    codes = fitted.codes.permute(2, 1, 0).flatten(1)
    sub_scales, sub_offsets = turned(fitted.sub_scales), turned(fitted.sub_offsets)
    return BlockFields(codes, fitted.scale, fitted.offset, sub_scales, sub_offsets)


def _too_large(name: str, weight: Tensor, target: GgmlType) -> QuantizationError:
    return QuantizationError(
        f"{name} holds a weight of magnitude {float(weight.abs().max()):.3g}, which is too large "
        f"for {target.name}",
        "Repair or convert the checkpoint, or keep this tensor in f32 or bf16.",
    )
