"""The FP8 product on Triton against its definition."""

import pytest
import torch
from tolerances import assert_close

from llmopt_kernels.fp8.reference import fp8_reference, quantize_tokens
from llmopt_kernels.fp8.torch_scaled_mm import MIN_CAPABILITY
from llmopt_kernels.fp8.triton import TritonFp8Weight, fp8_triton, quantize_tokens_triton
from llmopt_kernels.matmul.scaled.launch import scaled_matmul

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < MIN_CAPABILITY,
    reason="this device has no FP8 product",
)
CONFIG = {
    "BLOCK_O": 64,
    "BLOCK_T": 16,
    "BLOCK_K": 64,
    "SPLIT_K": 1,
    "GROUP_T": 2,
    "num_warps": 4,
    "num_stages": 3,
}
# Rounded operands multiply exactly; what is left is the sum. Tensor cores of sm_90 keep about 14
# bits within an instruction (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), better than float16.
SUM_DTYPE = torch.float16


def randn(device: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def random_weight(device: torch.device, rows: int, columns: int) -> torch.Tensor:
    return (randn(device, rows, columns, seed=1) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 33, 576])
def test_tokens_are_rounded_as_the_reference_does(device, columns, dtype):
    x = (randn(device, 9, columns) * 7).to(dtype)
    x[4] = 0
    values, scales = quantize_tokens_triton(x)
    expected_values, expected_scales = quantize_tokens(x)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(values.float(), expected_values.float())


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "rows", "columns"), [(1, 70, 130), (17, 64, 192), (3, 5, 31)])
def test_products(device, tokens, rows, columns, dtype, has_bias, parts):
    x = randn(device, tokens, columns).to(dtype)
    weight, scales = random_weight(device, rows, columns), randn(device, rows, seed=2).abs() / 100
    bias = randn(device, rows, seed=3).to(dtype) if has_bias else None
    expected = fp8_reference(x.double(), weight, scales)
    expected = expected if bias is None else expected + bias.double()
    values, token_scales = quantize_tokens_triton(x)
    config = {**CONFIG, "SPLIT_K": parts}
    out = scaled_matmul(values, token_scales, weight, scales, bias, dtype, config)
    assert out.dtype == dtype
    lowest = dtype if dtype == torch.bfloat16 else SUM_DTYPE
    assert_close(out, expected, dtype=lowest, num_terms=columns)


def test_a_layer_of_any_shape(device):
    weight = TritonFp8Weight(random_weight(device, 37, 31), randn(device, 37).abs() / 100)
    x = randn(device, 2, 31).bfloat16()
    expected = fp8_reference(x.double(), weight.values, weight.scales)
    assert_close(weight.matmul(x, None), expected, num_terms=31)
    assert weight.num_bytes == 37 * 31 + 37 * 4


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 100, 1000])
def test_real_shapes(device, tokens):
    weight, scales = random_weight(device, 4096, 14336), randn(device, 4096).abs() / 100
    x = randn(device, tokens, 14336).bfloat16()
    expected = fp8_reference(x.double(), weight, scales)
    assert_close(fp8_triton(x, weight, scales), expected, num_terms=14336)
