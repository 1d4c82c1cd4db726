"""The product of rounded tokens on a GPU: which of its two ways, and with which configuration.

Knows nothing of what the tokens are rounded to. The law: up to some number of tokens our kernel
multiplies; beyond it cuBLAS does, where it takes the shape.
"""

from typing import Protocol

import torch

from llmopt_kernels.matmul.configs import ShapeClass, default_config
from llmopt_kernels.matmul.scaled.launch import BLOCK_KS, quantize_tokens, scaled_matmul
from llmopt_kernels.tuning import launch_config

CROSSOVER_TOKENS = 256  # unless measured


class ScaledProduct(Protocol):
    """How cuBLAS multiplies values of one kind."""

    def __call__(
        self,
        values: torch.Tensor,
        token_scales: torch.Tensor,
        weight: torch.Tensor,
        row_scales: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """As `scaled_matmul`."""
        ...


def rounded_product(
    kernel: str,
    form: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    cublas: ScaledProduct | None,
) -> torch.Tensor:
    """x [T, K] rounded to `form` of `token_rounding`, times weight [O, K] in units of scales [O],
    plus bias [O]: -> [T, O] in the dtype of x.

    kernel: under which name configurations are kept; those of "{kernel}.switch" hold the number of
    tokens beyond which cuBLAS multiplies. cublas: None where it does not take this weight.
    """
    values, token_scales = quantize_tokens(x, form)
    shape = ShapeClass.of(8, len(x), *weight.shape)
    switch = launch_config(f"{kernel}.switch", shape.of_weight, {"tokens": CROSSOVER_TOKENS})
    if cublas is not None and len(x) > switch["tokens"]:
        return cublas(values, token_scales, weight, scales, bias, x.dtype)
    config = launch_config(kernel, str(shape), default_config(shape, BLOCK_KS[0]))
    return scaled_matmul(values, token_scales, weight, scales, bias, x.dtype, config)
