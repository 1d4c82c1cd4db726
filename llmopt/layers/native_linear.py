"""Linear layers on the compiled CPU kernels.

Knows nothing of models or files. The law: a layer computes round(x) @ weight^T + bias, where x is
rounded to one or two int8 in steps of columns (coded weights) or to bfloat16 (bfloat16 weights),
sums are float32, and nothing of a weight is kept twice.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

from llmopt.errors import OutputError
from llmopt.formats.gguf_blocks import GgufWeight
from llmopt.formats.quantized import QuantizedWeight, StoredWeight
from llmopt.hardware.cache import kernels_directory
from llmopt.layers.native_codes import native_codes, stack_native
from llmopt_kernels.bf16_gemv.native import takes_rows, view_rows
from llmopt_kernels.native.library import NativeLibrary, native_enabled, native_library
from llmopt_kernels.native.linear_weight import NativeWeight, multiply
from llmopt_kernels.wna8.native import pack_codes

WeightActivations = Literal["auto", "int8", "int16", "bf16"]  # what meets coded weights
MIN_EXACT_BITS = 8  # of weights whose own loss is no larger than that of int8 activations
MAX_ROW_TOKENS = 24  # with more tokens torch's matrix product is at least as fast on plain rows


class NativeLinear:
    """A weight in blocks of rows; `weight` is what the compiled functions take."""

    def __init__(self, library: NativeLibrary, weight: NativeWeight, kernel: str) -> None:
        self.library = library
        self.weight = weight
        self.kernel = kernel
        self.out_features, self.in_features = weight.shape

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weight, its scales and what fills it up."""
        return self.weight.num_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 or float32 [T, K] -> [T, O], on as many threads as torch uses."""
        return multiply(self.library, self.weight, x, torch.get_num_threads())


def library_for(dtype: torch.dtype, device: torch.device) -> NativeLibrary | None:
    """The compiled kernels, if layers on this device with activations of this dtype use them; None,
    which is said once, where there is no place for them.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or not native_enabled():
        return None
    try:
        return native_library(kernels_directory())
    except OutputError as error:
        _say_no_kernels(str(error))
        return None


@cache
def _say_no_kernels(reason: str) -> None:
    print(f"llmopt: no compiled CPU kernels, torch's are used: {reason}", file=sys.stderr)


def input_parts(activations: WeightActivations, weights: Sequence[StoredWeight]) -> int | None:
    """How many int8 numbers stand for each input of these weights; None: inputs are not rounded.

    "auto": one, and two for 8-bit weights, whose own loss one would double.
    """
    if activations == "auto":
        return 1 if any(_num_bits(weight) < MIN_EXACT_BITS for weight in weights) else 2
    return {"int8": 1, "int16": 2, "bf16": None}[activations]


def _num_bits(weight: StoredWeight) -> float:
    if isinstance(weight, QuantizedWeight):
        return weight.spec.bits
    return weight.type.bits_per_weight if isinstance(weight, GgufWeight) else 4  # a codebook's


def make_native_linear(
    weights: Sequence[StoredWeight],
    bias: torch.Tensor | None,
    library: NativeLibrary,
    parts: int,
) -> NativeLinear | None:
    """One layer from matrices that share their input, or None if they cannot be one for the
    kernels. bias: [O]; parts: int8 numbers for each input.
    """
    found = [codes for weight in weights if (codes := native_codes(weight)) is not None]
    stacked = stack_native(found) if len(found) == len(weights) else None
    if stacked is None:
        return None
    packed = pack_codes(
        stacked.codes,
        stacked.scales,
        bits=stacked.bits,
        zeros=stacked.zeros,
        offsets=stacked.offsets,
        table=stacked.table,
        order=stacked.order,
        bias=bias,
        parts=parts,
    )
    return NativeLinear(library, packed, f"native {stacked.label}a{8 * parts}")


class RowProduct:
    """The product with a bfloat16 matrix where it is: ours for few tokens, torch's for many."""

    def __init__(
        self, library: NativeLibrary, matrix: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        self.library = library
        self.weight = view_rows(matrix, bias)
        self._matrix = matrix
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 [T, K] -> [T, O], on as many threads as torch uses."""
        if len(x) > MAX_ROW_TOKENS:
            return F.linear(x, self._matrix, self._bias)
        return multiply(self.library, self.weight, x, torch.get_num_threads())


def make_row_product(matrix: torch.Tensor, bias: torch.Tensor | None) -> RowProduct | None:
    """The product with a matrix [O, K] as it is, or None if the kernels do not take it."""
    if not takes_rows(matrix):
        return None
    library = library_for(matrix.dtype, matrix.device)
    return None if library is None else RowProduct(library, matrix, bias)
