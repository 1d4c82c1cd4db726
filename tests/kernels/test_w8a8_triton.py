"""The integer product on Triton against its definition."""

import pytest
import torch
from tolerances import assert_close

from llmopt_kernels.matmul.scaled.launch import scaled_matmul
from llmopt_kernels.w8a8.reference import int8_product_reference, quantize_tokens, w8a8_reference
from llmopt_kernels.w8a8.triton import TritonInt8Weight, quantize_tokens_triton, w8a8_triton

CONFIG = {
    "BLOCK_O": 64,
    "BLOCK_T": 16,
    "BLOCK_K": 64,
    "SPLIT_K": 1,
    "GROUP_T": 2,
    "num_warps": 4,
    "num_stages": 3,
}


def randn(device: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def random_int8(device: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 33, 576])
def test_tokens_are_rounded_as_the_reference_does(device, columns, dtype):
    x = (randn(device, 9, columns) * 7).to(dtype)
    x[4] = 0
    x[5] = torch.arange(columns, device=device) / 2  # ties
    codes, scales = quantize_tokens_triton(x)
    expected_codes, expected_scales = quantize_tokens(x)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(codes, expected_codes)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"), [(1, 70, 130), (17, 64, 200), (33, 129, 64), (3, 5, 31)]
)
def test_sums_are_exact(device, tokens, rows, columns, parts):
    values = random_int8(device, tokens, columns)
    values[0], values[-1, ::2] = -128, 127
    weight = random_int8(device, rows, columns, seed=1)
    weight[0] = -128
    ones = torch.ones(max(tokens, rows), device=device)
    out = scaled_matmul(
        values,
        ones[:tokens, None],
        weight,
        ones[:rows],
        None,
        torch.float32,
        {**CONFIG, "SPLIT_K": parts},
    )
    assert torch.equal(out, int8_product_reference(values, weight).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_scales_and_bias(device, dtype, has_bias, parts):
    x = randn(device, 18, 96).to(dtype)
    weight = random_int8(device, 70, 96)
    scales = randn(device, 70, seed=2).abs() / 100
    bias = randn(device, 70, seed=3).to(dtype) if has_bias else None
    expected = w8a8_reference(x.double(), weight, scales)
    expected = expected if bias is None else expected + bias.double()
    values, token_scales = quantize_tokens_triton(x)
    config = {**CONFIG, "SPLIT_K": parts}
    out = scaled_matmul(values, token_scales, weight, scales, bias, dtype, config)
    assert out.dtype == dtype
    assert_close(out, expected)


def test_a_layer_of_any_shape(device):
    weight = TritonInt8Weight(random_int8(device, 37, 31), randn(device, 37).abs())
    x = randn(device, 2, 31).bfloat16()
    expected = w8a8_reference(x.double(), weight.values, weight.scales)
    assert_close(weight.matmul(x, None), expected)
    assert weight.num_bytes == 37 * 31 + 37 * 4


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 100, 1000])
def test_real_shapes(device, tokens):
    weight = random_int8(device, 4096, 14336)
    scales = randn(device, 4096).abs() / 1000
    x = randn(device, tokens, 14336).bfloat16()
    expected = w8a8_reference(x.double(), weight, scales)
    assert_close(w8a8_triton(x, weight, scales), expected)
