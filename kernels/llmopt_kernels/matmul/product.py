"""The product with a packed weight on a GPU: which of its two ways, and with which configuration.

Knows nothing of schemes. The law: up to some number of tokens the weight is dequantized in
registers; beyond it, where the product is bound by arithmetic and not by reading the weight, it is
dequantized once and multiplied by cuBLAS, so that a packed weight does not slow down big batches.
"""

import torch
import torch.nn.functional as F

from llmopt_kernels.matmul.configs import ShapeClass, default_config
from llmopt_kernels.matmul.launch import dequantized, packed_matmul
from llmopt_kernels.matmul.packed import BLOCK, PackedWeight
from llmopt_kernels.tuning import launch_config

CROSSOVER_TOKENS = 512  # unless measured


def packed_product(
    kernel: str, x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    """x [T, K] times the weight, plus bias [O]: -> [T, O] in the dtype of x.

    kernel: under which name configurations are kept; those of "{kernel}.switch" hold the number of
    tokens beyond which the weight is dequantized first.
    """
    shape = ShapeClass.of(weight.bits, len(x), *weight.shape)
    if len(x) > crossover_tokens(kernel, weight):
        return F.linear(x, dequantized(weight, x.dtype), bias)
    config = launch_config(kernel, str(shape), default_config(shape, BLOCK))
    return packed_matmul(x, weight, bias, config)


def crossover_tokens(kernel: str, weight: PackedWeight) -> int:
    """The largest batch that is multiplied with the weight as it is stored."""
    weight_class = ShapeClass.of(weight.bits, 1, *weight.shape).of_weight
    found = launch_config(f"{kernel}.switch", weight_class, {"tokens": CROSSOVER_TOKENS})
    return found["tokens"]
