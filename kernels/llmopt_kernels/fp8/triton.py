"""FP8 on a GPU: tokens rounded to e4m3 in one kernel, then a product of e4m3 values.

cuBLAS (torch._scaled_mm) multiplies big batches where it takes their shapes and dtype; Triton's
kernel of `matmul.scaled` multiplies small ones, and all others. Needs a device with e4m3 tensor
cores (`torch_scaled_mm.MIN_CAPABILITY`). Definition: `reference.py`.
"""

from dataclasses import dataclass

import torch

from llmopt_kernels.aot import AotCase
from llmopt_kernels.fp8.torch_scaled_mm import scaled_product, why_not
from llmopt_kernels.matmul.scaled import launch
from llmopt_kernels.matmul.scaled.product import rounded_product

KERNEL = "fp8"


def quantize_tokens_triton(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Same signature and result as `quantize_tokens` of the reference."""
    return launch.quantize_tokens(x, "fp8")


def fp8_triton(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x: [T, K]; weight: e4m3 [O, K]; scales: float32 [O]; bias: [O] -> [T, O] in x's dtype."""
    rows, columns = weight.shape
    cublas = scaled_product if why_not((rows, columns), x.device, x.dtype) is None else None
    return rounded_product(KERNEL, "fp8", x, weight, scales, bias, cublas)


@dataclass(frozen=True, slots=True)
class TritonFp8Weight:
    """e4m3 values [O, K] with one float32 scale per row [O], on a GPU."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes + self.scales.nbytes

    def matmul(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x: [T, K]; bias: [O] -> [T, O] in the dtype of x."""
        return fp8_triton(x, self.values, self.scales, bias)


def aot_signatures() -> list[AotCase]:
    """Specializations for `llmopt_kernels.aot`."""
    return launch.aot_cases("fp8", "fp8e4nv", "fp8")
