"""NF4, FP4 and other codebooks of 16 values on a GPU.

Weights are laid out by `matmul.packed.pack`, blocks as groups of columns, double-quantized scales
multiplied out. The kernel looks codes up in a table of float32 in shared memory: 16 neighbours, in
banks of their own, so that the lanes of a warp never wait for one another. See `matmul`.
"""

import torch

from llmopt_kernels.aot import AotCase
from llmopt_kernels.matmul.aot_cases import dequantize_case, packed_case
from llmopt_kernels.matmul.packed import PackedWeight
from llmopt_kernels.matmul.product import packed_product

KERNEL = "nf4"


def nf4_triton(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x: bfloat16 or float16 [T, K]; bias: [O] -> [T, O] in the dtype of x."""
    return packed_product(KERNEL, x, weight, bias)


def aot_signatures() -> list[AotCase]:
    """Specializations for `llmopt_kernels.aot`."""
    return [
        *(
            packed_case(f"nf4 {tokens} tokens", tokens, group_size=64, scales="fp32", table=True)
            for tokens in (1, 64, 512)
        ),
        dequantize_case("dequantize nf4", bits=4, scales="fp32", table=True),
    ]
