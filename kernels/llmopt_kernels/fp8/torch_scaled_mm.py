"""The FP8 product with torch._scaled_mm, on CUDA devices that have e4m3 tensor cores."""

from dataclasses import dataclass

import torch

from llmopt_kernels.fp8.reference import quantize_tokens

MIN_CAPABILITY = (8, 9)
MULTIPLE = 16  # of K and O


def why_not(shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a weight of this shape (O, K) cannot be multiplied in FP8 here, or None if it can."""
    if device.type != "cuda":
        return "only CUDA devices have an FP8 product"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return "this device has no FP8 product"
    if dtype != torch.bfloat16:
        return "products with a scale per row are computed for bfloat16 only"
    if any(size % MULTIPLE for size in shape):
        return f"its sides are not multiples of {MULTIPLE}"
    return None


@dataclass(frozen=True, slots=True)
class DynamicFp8Weight:
    """e4m3 values [O, K] with one float32 scale per row [O]."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes + self.scales.nbytes

    def matmul(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x: bfloat16 [T, K]; bias: [O] -> [T, O]."""
        values, token_scales = quantize_tokens(x)
        return scaled_product(values, token_scales, self.values, self.scales, bias, x.dtype)


def scaled_product(
    values: torch.Tensor,
    token_scales: torch.Tensor,
    weight: torch.Tensor,
    row_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product of e4m3 values [T, K] and weight [O, K] -> [T, O].

    token_scales: float32 [T, 1]; row_scales: float32 [O]; bias: [O]; dtype: of the result.
    """
    product: torch.Tensor = torch._scaled_mm(
        values,
        weight.T,
        scale_a=token_scales,
        scale_b=row_scales.unsqueeze(0),
        out_dtype=dtype,
    )
    return product if bias is None else product.add_(bias)
