"""Linear layers with packed weights on a GPU.

Knows nothing of models or files. The law: a layer computes x @ dequantize(weight)^T + bias, the
weight rounded once to the activation dtype, and never waits for the GPU.
"""

from collections.abc import Sequence

import torch

from llmopt.formats.quantized import StoredWeight
from llmopt.layers.codes import CodedWeight, coded_weight, stack_coded
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.matmul.packed import PackedWeight, can_pack, pack
from llmopt_kernels.nf4 import nf4
from llmopt_kernels.wna16 import wna16

DTYPES = (torch.bfloat16, torch.float16)


class TritonLinear:
    """A weight in the layout of the Triton kernels; `order` gathers the inputs group by group."""

    def __init__(
        self,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        order: torch.Tensor | None,
        kernel: str,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.order = order
        self.kernel = kernel
        self._multiply = wna16 if weight.table is None else nf4
        self.out_features, self.in_features = weight.shape

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weight, its scales and what fills it up."""
        return self.weight.num_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: bfloat16 or float16 [T, K] -> [T, O]."""
        if self.order is not None:
            x = x.index_select(1, self.order)
        return self._multiply(x, self.weight, self.bias)


def takes_packed(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether layers on this device, with activations of this dtype, can have packed weights."""
    return dtype in DTYPES and uses_triton(torch.empty(0, device=device))


def make_triton_linear(
    weights: Sequence[StoredWeight],
    bias: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> TritonLinear | None:
    """One layer from matrices that share their input, or None if they cannot be one for the
    kernels.
    """
    coded = [coded_weight(weight.to(device)) for weight in weights]
    found = [weight for weight in coded if weight is not None]
    stacked = stack_coded(found) if len(found) == len(weights) else None
    if stacked is None or not can_pack(stacked.codes.shape[1], stacked.group_size):
        return None
    return TritonLinear(_pack(stacked, dtype), bias, stacked.order, f"triton {stacked.label}")


def _pack(weight: CodedWeight, dtype: torch.dtype) -> PackedWeight:
    return pack(
        weight.codes,
        weight.scales,
        bits=weight.whole_bits,
        dtype=dtype,
        zeros=weight.zeros,
        offsets=weight.offsets,
        table=weight.table,
    )
