"""A bfloat16 weight as torch keeps it, row by row, for the compiled product with bfloat16 inputs.

Knows nothing of models or files. The law: the matrix is used where it is, never copied.
"""

import torch

from llmopt_kernels.native.linear_weight import STORAGE, NativeWeight, native_weight

COLUMN_MULTIPLE = 32


def takes_rows(weight: torch.Tensor) -> bool:
    """Whether the product takes this matrix [O, K] as it is."""
    whole = weight.shape[1] % COLUMN_MULTIPLE == 0
    return weight.dtype == torch.bfloat16 and weight.is_contiguous() and whole


def view_rows(weight: torch.Tensor, bias: torch.Tensor | None = None) -> NativeWeight:
    """The weight of a bfloat16 matrix [O, K] that `takes_rows` accepts. bias: [O]."""
    assert takes_rows(weight), "contiguous bfloat16 rows of whole vectors"
    columns = weight.shape[1]
    numbers = {
        "storage": STORAGE["rows"],
        "group_size": columns,
        "groups_per_super": 1,
        "step": columns,
        "padded_in": columns,
    }
    return native_weight({"data": weight}, numbers, (len(weight), columns), bias, None)
