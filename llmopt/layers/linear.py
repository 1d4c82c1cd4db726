"""Linear layers: one class per way of storing and multiplying the weight, and the choice among
them.

Knows nothing of models or files. The law: every class computes x @ dequantize(weight)^T + bias, up
to the rounding of its activation dtype, and `weight_bytes` is what one call really reads.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from llmopt.formats.dynamic import DynamicWeight, stack_dynamic
from llmopt.formats.quantized import (
    QuantizedWeight,
    StoredWeight,
    can_concatenate,
    concatenate_rows,
)
from llmopt.layers.codes import has_codes
from llmopt.layers.dynamic import make_dynamic_linear
from llmopt.layers.native_linear import (
    WeightActivations,
    input_parts,
    library_for,
    make_native_linear,
    make_row_product,
)
from llmopt.layers.triton_linear import make_triton_linear, takes_packed
from llmopt_kernels.wna16.torch_cpu import (
    INT4_ROW_MULTIPLE,
    Int4Weight,
    Int8Weight,
    SplitInt8Weight,
    kernel_group_size,
    kernels_run,
    pack_int4,
    pack_int8,
    pack_split_int8,
)

Weight = torch.Tensor | StoredWeight


class Linear(Protocol):
    """A linear layer: x [T, K] -> [T, O]."""

    @property
    def in_features(self) -> int:
        """K."""

    @property
    def out_features(self) -> int:
        """O."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights (scales included) that one call reads."""

    @property
    def kernel(self) -> str:
        """Name of the kernel in use, for result files."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, K] in the activation dtype -> [T, O]."""


class DenseLinear:
    """A full-precision weight [O, K]; `kernel` says so if it was dequantized at loading. Bfloat16
    on a CPU goes through the compiled kernels.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, kernel: str = "dense"
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.rows = make_row_product(weight, bias)
        self.kernel = "native bf16" if self.rows and kernel == "dense" else kernel
        self.out_features, self.in_features = weight.shape

    @property
    def weight_bytes(self) -> int:
        """Size of the weight as stored in memory."""
        return self.weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, K] -> [T, O]."""
        if self.rows is not None and x.dtype == torch.bfloat16 and x.dim() == 2:
            return self.rows(x)
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """A quantized weight in the layout of a CPU kernel; `order` gathers the inputs group by
    group.
    """

    def __init__(
        self,
        weight: Int4Weight | Int8Weight | SplitInt8Weight,
        shape: tuple[int, int],
        bias: torch.Tensor | None,
        order: torch.Tensor | None,
        kernel: str,
    ) -> None:
        self._weight = weight
        self._bias = bias
        self._order = order
        self.kernel = kernel
        self.out_features, self.in_features = shape

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weight and its scales."""
        return self._weight.num_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 [T, K] -> [T, O]."""
        if self._order is not None:
            x = x[:, self._order]
        out = self._weight.matmul(x)
        return out if self._bias is None else out.add_(self._bias)


class SplitLinear:
    """Layers that share an input but cannot be one matrix: computed in turn, outputs side by
    side.
    """

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = tuple(parts)
        self.in_features = self.parts[0].in_features
        self.out_features = sum(part.out_features for part in self.parts)

    @property
    def weight_bytes(self) -> int:
        """Sum over the parts."""
        return sum(part.weight_bytes for part in self.parts)

    @property
    def kernel(self) -> str:
        """The parts' kernels, each once."""
        return " + ".join(dict.fromkeys(part.kernel for part in self.parts))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, K] -> [T, O]."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


def make_linear(
    weights: Sequence[Weight],
    biases: Sequence[torch.Tensor | None],
    *,
    dtype: torch.dtype,
    device: torch.device,
    activations: WeightActivations = "auto",
) -> Linear:
    """One layer from matrices that share their input (q, k, v; gate, up), stacked along O.

    dtype is that of the activations. Weights without a kernel of their own are dequantized once.
    Matrices that cannot be stacked (different specs or groupings) are computed one after the
    other. activations: what bfloat16 activations are rounded to before they meet coded weights on
    a CPU; all but "bf16" need the compiled kernels and are "bf16" without them; "auto" is "int8"
    before weights of fewer than 8 bits, else "int16".
    """
    bias = _join_biases(weights, biases, dtype, device)
    dense = [w for w in weights if isinstance(w, torch.Tensor)]
    groups = [w for w in weights if isinstance(w, QuantizedWeight)]
    dynamic = [w for w in weights if isinstance(w, DynamicWeight)]
    if len(dense) == len(weights):
        weight = dense[0] if len(dense) == 1 else torch.cat(dense)
        return DenseLinear(weight.to(device, dtype), bias)
    stored = [w for w in weights if not isinstance(w, torch.Tensor)]
    parts_of_x = None if takes_packed(dtype, device) else input_parts(activations, stored)
    library = None if parts_of_x is None else library_for(dtype, device)
    if library is not None and parts_of_x and len(stored) == len(weights) and not dynamic:
        native = make_native_linear(stored, bias, library, parts_of_x)
        if native is not None:
            return native
    if len(groups) == len(weights) and can_concatenate(groups):
        return _quantized_linear(concatenate_rows(groups), bias, dtype, device)
    stacked = stack_dynamic(dynamic) if len(dynamic) == len(weights) else None
    if stacked is not None:
        return make_dynamic_linear(stacked, bias, dtype, device)
    if not (dense or groups or dynamic):
        takes_codes = library is not None or takes_packed(dtype, device)
        if not takes_codes or not any(has_codes(weight) for weight in stored):
            return _dequantized_linear(stored, bias, dtype, device)
        if takes_packed(dtype, device):
            packed = make_triton_linear(stored, bias, dtype=dtype, device=device)
            if packed is not None:
                return packed
        if len(stored) == 1:
            return _dequantized_linear(stored, bias, dtype, device)
    parts = zip(weights, biases, strict=True)
    return SplitLinear(
        [
            make_linear([w], [b], dtype=dtype, device=device, activations=activations)
            for w, b in parts
        ]
    )


def _join_biases(
    weights: Sequence[Weight],
    biases: Sequence[torch.Tensor | None],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor | None:
    if all(bias is None for bias in biases):
        return None
    rows = [
        torch.zeros(weight.shape[0]) if bias is None else bias.float()
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(rows).to(device, dtype)


def _quantized_linear(
    weight: QuantizedWeight, bias: torch.Tensor | None, dtype: torch.dtype, device: torch.device
) -> Linear:
    """The fastest kernel for this weight, or the weight dequantized once where there is none."""
    if takes_packed(dtype, device):
        linear = make_triton_linear([weight], bias, dtype=dtype, device=device)
        return _dequantized_linear([weight], bias, dtype, device) if linear is None else linear
    packed = None
    if device.type == "cpu" and dtype == torch.bfloat16 and kernels_run():
        packed = _pack_for_cpu(weight)
    if packed is None:
        return _dequantized_linear([weight], bias, dtype, device)
    data, kernel = packed
    return PackedLinear(data, weight.shape, bias, weight.column_order(), kernel)


def _dequantized_linear(
    weights: Sequence[StoredWeight],
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Linear:
    dense = [weight.to(device).dequantize(dtype) for weight in weights]
    labels = " + ".join(dict.fromkeys(weight.label for weight in weights))
    matrix = dense[0] if len(dense) == 1 else torch.cat(dense)
    return DenseLinear(matrix, bias, kernel=f"dequantized {labels}")


def _pack_for_cpu(
    weight: QuantizedWeight,
) -> tuple[Int4Weight | Int8Weight | SplitInt8Weight, str] | None:
    spec, (rows, columns) = weight.spec, weight.shape
    if spec.bits not in (4, 8) or rows % INT4_ROW_MULTIPLE:
        return None
    order = weight.column_order()
    codes = weight.codes if order is None else weight.codes[:, order]
    if spec.bits == 8 and spec.group_size is None and spec.symmetric:
        return pack_int8(codes, weight.scales), "int8pack"
    if kernel_group_size(spec.columns_per_group(columns)) is None:
        return None
    scales = weight.scales.float()
    if spec.bits == 8:
        return (pack_split_int8(codes, scales), "int4pack x 2") if spec.symmetric else None
    zeros = spec.midpoint if weight.zeros is None else weight.zeros.float()
    offsets = (8.0 - zeros) * scales
    return pack_int4(codes, scales, offsets), "int4pack"
