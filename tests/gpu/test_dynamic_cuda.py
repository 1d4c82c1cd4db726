"""Products whose inputs are rounded at run time, on a CUDA device."""

import pytest
import torch

from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.quantized import QuantSpec
from llmopt.layers.linear import make_linear
from llmopt.quantize.fp8 import quantize_fp8
from llmopt.quantize.rtn import quantize_rtn
from llmopt_kernels.fp8.reference import fp8_reference
from llmopt_kernels.fp8.torch_scaled_mm import MIN_CAPABILITY
from llmopt_kernels.w8a8.reference import int8_product_reference, w8a8_reference
from llmopt_kernels.w8a8.torch_int_mm import int8_product

pytestmark = pytest.mark.gpu
TOLERANCE = 8e-3  # relative, of bfloat16


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
def test_integer_products_are_exact(tokens):
    generator = torch.Generator().manual_seed(tokens)
    a = torch.randint(-128, 128, (tokens, 64), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (48, 64), generator=generator, dtype=torch.int8)
    product = int8_product(a.cuda(), b.cuda()).cpu()
    assert torch.equal(product, int8_product_reference(a, b))


@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_w8a8_layers(tokens):
    stored = quantize_rtn(randn(48, 64), QuantSpec(8, None))
    weight = DynamicWeight(stored, "int8")
    linear = make_linear([weight], [None], dtype=torch.bfloat16, device=torch.device("cuda"))
    assert linear.kernel == "triton w8a8"
    x = randn(tokens, 64, seed=1).bfloat16()
    values = (stored.codes.int() - 128).to(torch.int8)
    expected = w8a8_reference(x.float(), values, stored.scales.float().flatten())
    out = linear(x.cuda()).cpu().float()
    assert (out - expected).norm() / expected.norm() < TOLERANCE


@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_fp8_layers(tokens):
    if torch.cuda.get_device_capability() < MIN_CAPABILITY:
        pytest.skip("this device has no FP8 product")
    stored = quantize_fp8(randn(48, 64))
    weight = DynamicWeight(stored, "fp8")
    bias = randn(48, seed=2)
    linear = make_linear([weight], [bias], dtype=torch.bfloat16, device=torch.device("cuda"))
    assert linear.kernel == "triton fp8"
    x = randn(tokens, 64, seed=1).bfloat16()
    expected = fp8_reference(x.float(), stored.values, stored.scales.flatten())
    expected += bias.bfloat16().float()
    out = linear(x.cuda()).cpu().float()
    assert (out - expected).norm() / expected.norm() < TOLERANCE
