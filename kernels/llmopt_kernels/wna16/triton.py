"""W4A16 and W8A16 on a GPU: uniform groups of GPTQ, AWQ and GGUF, symmetric or not.

Weights are laid out by `matmul.packed.pack`; codes of 2 and 3 bits are nibbles, those of 5 and 6
bytes. The kernel, and how it keeps a batch of any size from being slower than 16-bit weights, are
described in `matmul`.
"""

import torch

from llmopt_kernels.aot import AotCase
from llmopt_kernels.matmul.aot_cases import dequantize_case, packed_case
from llmopt_kernels.matmul.packed import PackedWeight
from llmopt_kernels.matmul.product import packed_product

KERNEL = "wna16"


def wna16_triton(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x: bfloat16 or float16 [T, K]; bias: [O] -> [T, O] in the dtype of x."""
    return packed_product(KERNEL, x, weight, bias)


def aot_signatures() -> list[AotCase]:
    """Specializations for `llmopt_kernels.aot`."""
    cases = [packed_case(f"w4a16 g128 {tokens} tokens", tokens) for tokens in (1, 32, 64, 128, 512)]
    return [
        *cases,
        packed_case("w4a16 g32 1 token", 1, group_size=32),
        packed_case("w4a16 g64 asymmetric 1 token", 1, group_size=64, zeros=True),
        packed_case("w4a16 g128 float16 512 tokens", 512, dtype="fp16", scales="fp16"),
        packed_case("w4a16 q4_k 1 token", 1, group_size=32, scales="fp32", offsets=True),
        packed_case("w8a16 g128 1 token", 1, bits=8),
        packed_case("w8a16 q6_k 1 token", 1, bits=8, group_size=16, scales="fp32"),
        packed_case("w8a16 g128 512 tokens", 512, bits=8),
        dequantize_case("dequantize w4 g64", bits=4),
        dequantize_case("dequantize w8 g64", bits=8),
    ]
