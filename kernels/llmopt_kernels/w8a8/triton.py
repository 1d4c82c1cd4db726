"""W8A8 on a GPU: tokens rounded to int8 in one kernel, then an exact integer product.

cuBLAS (torch._int_mm) multiplies big batches where it takes their shapes; Triton's kernel of
`matmul.scaled` multiplies small ones, and all where K or O is no multiple of 8. Definition:
`reference.py`.
"""

from dataclasses import dataclass

import torch

from llmopt_kernels.aot import AotCase
from llmopt_kernels.matmul.scaled import launch
from llmopt_kernels.matmul.scaled.product import rounded_product
from llmopt_kernels.w8a8.torch_int_mm import scaled_int8_product, why_not_on_cuda

KERNEL = "w8a8"


def quantize_tokens_triton(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Same signature and result as `quantize_tokens` of the reference."""
    return launch.quantize_tokens(x, "int8")


def w8a8_triton(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x: [T, K]; weight: int8 [O, K]; scales: float32 [O]; bias: [O] -> [T, O] in x's dtype."""
    is_taken = why_not_on_cuda((len(weight), x.shape[1])) is None
    cublas = scaled_int8_product if is_taken else None
    return rounded_product(KERNEL, "int8", x, weight, scales, bias, cublas)


@dataclass(frozen=True, slots=True)
class TritonInt8Weight:
    """Signed bytes [O, K] with one float32 scale per row [O], on a GPU."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes + self.scales.nbytes

    def matmul(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x: [T, K]; bias: [O] -> [T, O] in the dtype of x, rounded once."""
        return w8a8_triton(x, self.values, self.scales, bias)


def aot_signatures() -> list[AotCase]:
    """Specializations for `llmopt_kernels.aot`."""
    return launch.aot_cases("w8a8", "i8", "int8")
