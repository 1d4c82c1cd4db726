"""Weights in blocks of 16 output rows, one row per lane, and the product with them.

Knows nothing of models, files or how weights are stored elsewhere. The law: `LinearWeightStruct` is
`LinearWeight` of linear.h, field by field, and what it points to lives as long as it.
"""

import ctypes
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from llmopt_kernels.native.library import NativeLibrary

ROW_BLOCK = 16
STORAGE = {"code4": 0, "code8": 1, "rows": 2, "code5": 3, "code6": 4}
NUMBER_TYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

_POINTERS = (
    "data",
    "scales",
    "super_scales",
    "zeros",
    "offsets",
    "super_offsets",
    "table",
    "bias",
    "order",
)
_INTEGERS = (
    "storage",
    "scale_type",
    "offset_type",
    "zero",
    "group_size",
    "groups_per_super",
    "step",
    "in_features",
    "padded_in",
    "out_features",
    "parts",
)


class LinearWeightStruct(ctypes.Structure):
    """`LinearWeight` of linear.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int32) for name in _INTEGERS),
    ]


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A packed weight [O, K]; `struct` points into `tensors`, which it keeps alive."""

    tensors: dict[str, torch.Tensor]
    shape: tuple[int, int]
    struct: LinearWeightStruct = field(repr=False)

    @property
    def address(self) -> ctypes.c_void_p:
        """What a compiled function takes for `const LinearWeight*`."""
        return ctypes.c_void_p(ctypes.addressof(self.struct))

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads, without the bias and the order of columns."""
        return sum(
            tensor.nbytes for name, tensor in self.tensors.items() if name not in ("bias", "order")
        )


def native_weight(
    tensors: dict[str, torch.Tensor],
    numbers: dict[str, int],
    shape: tuple[int, int],
    bias: torch.Tensor | None,
    order: torch.Tensor | None,
    parts: int = 1,
) -> NativeWeight:
    """A weight of these arrays and integers of the struct. bias: [O]; order: [K]."""
    if bias is not None:
        tensors["bias"] = F.pad(bias.float(), (0, -len(bias) % ROW_BLOCK))
    if order is not None:
        tensors["order"] = order.to(torch.int32).contiguous()
    struct = LinearWeightStruct(
        **numbers,
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        out_features=shape[0],
        in_features=shape[1],
        parts=parts,
    )
    return NativeWeight(tensors, shape, struct)


def fill_up(matrix: torch.Tensor, columns: int) -> torch.Tensor:
    """Zeros up to whole blocks of rows and to `columns`."""
    rows = -len(matrix) % ROW_BLOCK
    if not rows and matrix.shape[1] == columns:
        return matrix.contiguous()
    return F.pad(matrix, (0, columns - matrix.shape[1], 0, rows))


def in_blocks(numbers: torch.Tensor) -> torch.Tensor:
    """[O, G] to [O / 16, G, 16]."""
    return fill_up(numbers, numbers.shape[1]).view(-1, ROW_BLOCK, numbers.shape[1]).mT.contiguous()


def multiply(
    library: NativeLibrary, weight: NativeWeight, x: torch.Tensor, num_threads: int
) -> torch.Tensor:
    """x: bfloat16 or float32 [T, K] -> [T, O] in the dtype of x, on `num_threads` threads."""
    rows, columns = weight.shape
    assert x.shape[1] == columns, "one input per column of the weight"
    x = x.contiguous()
    out = torch.empty(len(x), rows, dtype=x.dtype, device="cpu")
    if len(x):
        library.handle.llmopt_linear(
            library.instruction_set,
            weight.address,
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            NUMBER_TYPES[x.dtype],
            len(x),
            num_threads,
        )
    return out
