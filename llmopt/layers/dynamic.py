"""Linear layers that round their inputs token by token: W8A8, FP8, and any mix of the two.

Knows nothing of models or files. The law: a layer computes what the reference of its kernel
defines, up to the rounding of its activation dtype; where no integer or FP8 product is to be had,
the rounded values are multiplied as they are, because 16-bit types hold them exactly.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from llmopt.formats.dynamic import Activations, DynamicWeight
from llmopt.formats.fp8 import Fp8Weight
from llmopt.formats.quantized import QuantizedWeight
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.fp8 import reference as fp8
from llmopt_kernels.fp8 import torch_scaled_mm
from llmopt_kernels.fp8.torch_scaled_mm import DynamicFp8Weight
from llmopt_kernels.w8a8 import reference as w8a8
from llmopt_kernels.w8a8 import torch_int_mm
from llmopt_kernels.w8a8.torch_int_mm import pack_dynamic_int8

QUANTIZERS: dict[Activations, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "int8": w8a8.quantize_tokens,
    "fp8": fp8.quantize_tokens,
}


class DynamicMatrix(Protocol):
    """A weight that rounds the inputs it is multiplied with."""

    @property
    def values(self) -> torch.Tensor:
        """[O, K] in 8 bits."""

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""

    def matmul(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x: [T, K]; bias: [O] -> [T, O] in the dtype of x."""


class DynamicLinear:
    """A weight in the layout of an integer or FP8 product."""

    def __init__(
        self,
        weight: DynamicMatrix,
        bias: torch.Tensor | None,
        kernel: str,
    ) -> None:
        self._weight = weight
        self._bias = bias
        self.kernel = kernel
        self.out_features, self.in_features = weight.values.shape

    @property
    def weight_bytes(self) -> int:
        """Size of the weight and its scales."""
        return self._weight.num_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, K] -> [T, O]."""
        return self._weight.matmul(x, self._bias)


class SimulatedLinear:
    """Rounds its inputs, and multiplies the rounded values in the dtype of `values`.

    values: [O, K] in a dtype that holds the sums, too; scales: float32 [O] of the rows
    """

    def __init__(
        self,
        values: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
        activations: Activations,
        kernel: str,
    ) -> None:
        self._values = values
        self._scales = scales
        self._bias = bias
        self._quantize = QUANTIZERS[activations]
        self.kernel = kernel
        self.out_features, self.in_features = values.shape

    @property
    def weight_bytes(self) -> int:
        """Size of the values as they are in memory, and of the scales."""
        return self._values.nbytes + self._scales.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, K] -> [T, O]."""
        codes, token_scales = self._quantize(x)
        out = F.linear(codes.to(self._values.dtype), self._values).float()
        out.mul_(token_scales).mul_(self._scales)
        return (out if self._bias is None else out.add_(self._bias)).to(x.dtype)


def make_dynamic_linear(
    weight: DynamicWeight, bias: torch.Tensor | None, dtype: torch.dtype, device: torch.device
) -> DynamicLinear | SimulatedLinear:
    """The layer for a weight and a device; its `kernel` says why, where it only simulates.

    dtype is that of the activations.
    """
    weight = weight.to(device)
    if isinstance(weight.weight, Fp8Weight):
        return _fp8_linear(weight.weight, weight, bias, dtype)
    return _integer_linear(weight.weight, weight, bias, dtype)


def _fp8_linear(
    stored: Fp8Weight, weight: DynamicWeight, bias: torch.Tensor | None, dtype: torch.dtype
) -> DynamicLinear | SimulatedLinear:
    scales = stored.row_scales().flatten().contiguous()
    if weight.activations == "fp8" and _multiplies_fp8(stored.values):
        from llmopt_kernels.fp8.triton import TritonFp8Weight

        return DynamicLinear(TritonFp8Weight(stored.values, scales), bias, f"triton {weight.label}")
    reason = torch_scaled_mm.why_not(stored.shape, stored.values.device, dtype)
    if weight.activations != "fp8":
        reason = "FP8 weights are multiplied with FP8 inputs only"
    if reason is None:
        packed = DynamicFp8Weight(stored.values, scales)
        return DynamicLinear(packed, bias, f"{weight.label} scaled_mm")
    values = stored.values.to(_simulation_dtype(dtype))
    return SimulatedLinear(values, scales, bias, weight.activations, _simulated(weight, reason))


def _integer_linear(
    stored: QuantizedWeight, weight: DynamicWeight, bias: torch.Tensor | None, dtype: torch.dtype
) -> DynamicLinear | SimulatedLinear:
    spec, device = stored.spec, stored.codes.device
    has_row_scales = spec.group_size is None and spec.symmetric
    if weight.activations != "int8" or spec.bits != 8 or not has_row_scales:
        reason: str | None = "only symmetric 8-bit rows and inputs have an integer product"
    elif uses_triton(stored.codes):
        from llmopt_kernels.w8a8.triton import TritonInt8Weight

        int8 = pack_dynamic_int8(stored.codes, stored.scales)
        packed_int8 = TritonInt8Weight(int8.values, int8.scales)
        return DynamicLinear(packed_int8, bias, f"triton {weight.label}")
    elif device.type == "cuda":
        reason = torch_int_mm.why_not_on_cuda(stored.shape)
    else:
        reason = torch_int_mm.why_not_on_cpu()
    if reason is None:
        packed = pack_dynamic_int8(stored.codes, stored.scales)
        return DynamicLinear(packed, bias, f"{weight.label} int_mm")
    compute = _simulation_dtype(dtype)
    if has_row_scales:
        values = stored.codes.to(compute).sub_(spec.midpoint)
        scales = stored.scales.float().flatten()
    else:
        values = stored.dequantize(compute)
        scales = torch.ones(stored.shape[0], device=device)
    return SimulatedLinear(values, scales, bias, weight.activations, _simulated(weight, reason))


def _multiplies_fp8(values: torch.Tensor) -> bool:
    """Whether Triton's FP8 product runs where these values are."""
    if not uses_triton(values):
        return False
    return torch.cuda.get_device_capability(values.device) >= torch_scaled_mm.MIN_CAPABILITY


def _simulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums of unscaled products do not fit into float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _simulated(weight: DynamicWeight, reason: str) -> str:
    return f"{weight.label} simulated: {reason}"
