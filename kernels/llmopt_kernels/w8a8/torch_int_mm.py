"""The W8A8 product with torch._int_mm: int8 matrices, int32 sums, on CPUs and on CUDA.

On a CPU it is oneDNN's integer product, which is exact only where the processor adds 32-bit sums
(VNNI, AMX); older ones add pairs in 16 bits, which saturates. So it is tried once, on the largest
values there are, before it is trusted.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from llmopt_kernels.w8a8.reference import int8_product_reference, quantize_tokens

CUDA_MIN_ROWS = 17  # cublas takes no fewer rows
CUDA_MULTIPLE = 8  # of K and O


@cache
def why_not_on_cpu() -> str | None:
    """Why integer products cannot be used on this processor, or None if they can (tried once)."""
    try:
        exact = all(_is_exact(tokens) for tokens in (1, 3, 20))
    except (RuntimeError, AttributeError, NotImplementedError):
        return "this torch has no int8 product for CPUs"
    return None if exact else "this processor's int8 product saturates"


def why_not_on_cuda(shape: tuple[int, int]) -> str | None:
    """Why a weight of this shape (O, K) cannot be multiplied on CUDA, or None if it can."""
    if all(size % CUDA_MULTIPLE == 0 for size in shape):
        return None
    return f"its sides are not multiples of {CUDA_MULTIPLE}"


def int8_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The exact product of int8 a [T, K] and b [O, K]: -> int32 [T, O]."""
    tokens, columns = a.shape
    assert columns > 1, "torch 2.13 answers zeros for a single column"
    if a.device.type == "cuda" and tokens < CUDA_MIN_ROWS:
        a = F.pad(a, (0, 0, 0, CUDA_MIN_ROWS - tokens))
    product: torch.Tensor = torch._int_mm(a, b.T)
    return product[:tokens]


def scaled_int8_product(
    values: torch.Tensor,
    token_scales: torch.Tensor,
    weight: torch.Tensor,
    row_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product of int8 values [T, K] and weight [O, K] -> [T, O], rounded once.

    token_scales: float32 [T, 1]; row_scales: float32 [O]; bias: [O]; dtype: of the result.
    """
    product = int8_product(values, weight).float()
    product.mul_(token_scales).mul_(row_scales)
    return (product if bias is None else product.add_(bias)).to(dtype)


@dataclass(frozen=True, slots=True)
class DynamicInt8Weight:
    """Signed bytes [O, K] with one float32 scale per row [O]."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes + self.scales.nbytes

    def matmul(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x: [T, K]; bias: [O] -> [T, O] in the dtype of x, rounded once."""
        codes, token_scales = quantize_tokens(x)
        return scaled_int8_product(codes, token_scales, self.values, self.scales, bias, x.dtype)


def pack_dynamic_int8(codes: torch.Tensor, scales: torch.Tensor) -> DynamicInt8Weight:
    """Lay out (code - 128) * scale. codes: uint8 [O, K]; scales: [O, 1]."""
    values = (codes.to(torch.int16) - 128).to(torch.int8).contiguous()
    return DynamicInt8Weight(values, scales.float().flatten().contiguous())


def _is_exact(tokens: int) -> bool:
    """Whether products of the largest values, of one sign and of both, are what they should be."""
    a = torch.full((tokens, 256), -128, dtype=torch.int8)
    b = torch.full((32, 256), -128, dtype=torch.int8)
    b[1::2] = 127
    return torch.equal(int8_product(a, b), int8_product_reference(a, b))
