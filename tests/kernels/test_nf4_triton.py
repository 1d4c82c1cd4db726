"""Products with weights from a codebook against the float64 reference."""

import pytest
import torch
from tolerances import assert_close

from llmopt.formats.codebook import NestedAbsmax, codebook
from llmopt_kernels.matmul.launch import dequantized, packed_matmul
from llmopt_kernels.matmul.packed import dequantize, pack
from llmopt_kernels.nf4.reference import nested_absmax_reference, nf4_reference
from llmopt_kernels.nf4.triton import nf4_triton

CONFIG = {
    "BLOCK_O": 64,
    "BLOCK_T": 16,
    "BLOCK_K": 128,
    "SPLIT_K": 1,
    "GROUP_T": 2,
    "num_warps": 4,
    "num_stages": 3,
}
MAGNITUDE = 0.7  # twice the root mean square of a term


def random_weight(
    device: torch.device, rows: int, columns: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [O, K] and scales [blocks]."""
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    absmax = torch.rand(codes.numel() // block_size, generator=generator) + 0.1
    return codes.to(device), absmax.to(device)


def random_inputs(device: torch.device, tokens: int, columns: int) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "block_size", "parts"),
    [(1, 37, 192, 64, 1), (17, 130, 128, 32, 1), (5, 20, 512, 256, 3)],
)
def test_products(device, tokens, rows, columns, block_size, parts, kind, dtype):
    codes, absmax = random_weight(device, rows, columns, block_size)
    table = codebook(kind, device)
    x = random_inputs(device, tokens, columns).to(dtype)
    weight = pack(codes, absmax.view(rows, -1), bits=4, dtype=dtype, table=table)
    expected = nf4_reference(x.double(), codes, absmax, table, block_size)
    out = packed_matmul(x, weight, None, {**CONFIG, "SPLIT_K": parts})
    assert_close(out, expected, num_terms=columns, magnitude=MAGNITUDE)
    assert torch.equal(dequantized(weight, dtype), dequantize(weight).to(dtype))


def test_double_quantized_scales(device):
    generator = torch.Generator().manual_seed(0)
    codes, _ = random_weight(device, 24, 128, 64)
    nested = NestedAbsmax(
        torch.randint(0, 256, (48,), generator=generator, dtype=torch.uint8),
        torch.rand(2, generator=generator),
        torch.linspace(-1, 1, 256),
        0.7,
        block_size=32,
    ).to(device)
    absmax = nested_absmax_reference(nested.codes, nested.absmax, nested.table, 0.7, 32)
    torch.testing.assert_close(nested.dequantize().double(), absmax, rtol=1e-6, atol=1e-7)
    table = codebook("nf4", device)
    scales = nested.dequantize().view(24, -1)
    weight = pack(codes, scales, bits=4, dtype=torch.bfloat16, table=table)
    x = random_inputs(device, 3, 128).bfloat16()
    expected = nf4_reference(x.double(), codes, absmax, table)
    assert_close(nf4_triton(x, weight), expected, num_terms=128, magnitude=MAGNITUDE)


def test_the_reference_counts_blocks_across_rows():
    codes = torch.tensor([[1, 2, 3], [0, 1, 2]], dtype=torch.uint8)
    table = torch.arange(16.0)
    out = nf4_reference(torch.ones(1, 3), codes, torch.tensor([1.0, 10.0]), table, block_size=4)
    assert out.tolist() == [[6.0, 30.0]]  # 1 + 2 + 3 and 0 * 1 + 1 * 10 + 2 * 10


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 100, 700])
def test_real_shapes(device, tokens):
    codes, absmax = random_weight(device, 4096, 14336, 64)
    table = codebook("nf4", device)
    x = random_inputs(device, tokens, 14336).bfloat16()
    weight = pack(codes, absmax.view(4096, -1), bits=4, dtype=torch.bfloat16, table=table)
    expected = nf4_reference(x.double(), codes, absmax, table)
    assert_close(nf4_triton(x, weight), expected, num_terms=14336, magnitude=MAGNITUDE)
