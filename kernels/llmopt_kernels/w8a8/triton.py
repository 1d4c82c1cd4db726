"""W8A8 on a GPU: tokens rounded to int8 in one kernel, then an exact integer product.

cuBLAS (torch._int_mm) multiplies big batches where it takes their shapes; Triton's kernel of
`matmul.scaled` multiplies small ones, and all where K or O is no multiple of 8. Definition:
`reference.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from llmopt_kernels.aot import AotCase
from llmopt_kernels.matmul import configs
from llmopt_kernels.matmul.scaled import launch
from llmopt_kernels.tuning import launch_config
from llmopt_kernels.w8a8.torch_int_mm import int8_product, why_not_on_cuda

KERNEL = "w8a8"
CROSSOVER_TOKENS = 256  # beyond which cuBLAS multiplies, unless measured


def quantize_tokens_triton(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Same signature and result as `quantize_tokens` of the reference."""
    return launch.quantize_tokens(x, "int8")


def w8a8_triton(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x: [T, K]; weight: int8 [O, K]; scales: float32 [O]; bias: [O] -> [T, O] in x's dtype."""
    values, token_scales = quantize_tokens_triton(x)
    shape = configs.ShapeClass.of(8, len(x), *weight.shape)
    switch = launch_config(f"{KERNEL}.switch", shape.of_weight, {"tokens": CROSSOVER_TOKENS})
    if len(x) > switch["tokens"] and why_not_on_cuda((len(weight), x.shape[1])) is None:
        product = int8_product(values, weight).float()
        product.mul_(token_scales).mul_(scales)
        return (product if bias is None else product.add_(bias)).to(x.dtype)
    config = launch_config(KERNEL, str(shape), configs.default_config(shape, launch.BLOCK_KS[0]))
    return launch.scaled_matmul(values, token_scales, weight, scales, bias, x.dtype, config)


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


def shape_class(num_tokens: int, num_rows: int, num_columns: int) -> str:
    """The class of shapes under which a configuration is kept."""
    return str(configs.ShapeClass.of(8, num_tokens, num_rows, num_columns))


def candidates(name: str) -> list[Mapping[str, int]]:
    """Configurations worth measuring for a class of shapes."""
    return configs.candidates(configs.ShapeClass.parse(name), launch.BLOCK_KS)


def aot_signatures() -> list[AotCase]:
    """Specializations for `llmopt_kernels.aot`."""
    return launch.aot_cases("w8a8", "i8", "int8")
