import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.errors import QuantizationError
from llmopt.quantize.fp8 import quantize_fp8


def e4m3_values() -> torch.Tensor:
    """Every value of the type, from its definition: 7 is the exponent's bias, 448 the largest."""
    magnitudes = [m * 2.0**-9 for m in range(8)]  # subnormal
    magnitudes += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
    magnitudes = magnitudes[:-1]  # the last pattern is NaN
    return torch.tensor([-m for m in reversed(magnitudes)] + magnitudes)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.01, 1.0, 100.0]))
def test_every_weight_becomes_the_nearest_value(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 40, generator=generator).mul(spread).exp().clamp(max=1e4)
    weight *= torch.randn(3, 40, generator=generator).sign()
    quantized = quantize_fp8(weight)
    levels = e4m3_values() * quantized.scales.unsqueeze(-1)  # [O, 1, L]
    nearest = (weight.unsqueeze(-1) - levels).abs().amin(dim=-1)
    error = (weight - quantized.dequantize()).abs()
    assert torch.allclose(error, nearest, rtol=1e-4, atol=1e-9)


def test_the_largest_weight_of_a_row_takes_the_largest_value():
    quantized = quantize_fp8(torch.tensor([[448.0, -1.0], [-896.0, 448.0]]))
    assert quantized.scales.flatten().tolist() == [1.0, 2.0]
    assert quantized.values.float().tolist() == [[448.0, -1.0], [-448.0, 224.0]]


def test_scales_are_numbers_that_every_reader_holds_exactly():
    scales = quantize_fp8(torch.randn(64, 32, generator=torch.Generator().manual_seed(0))).scales
    assert scales.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(scales.to(dtype).float(), scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_of_a_dtype_that_was_asked_for_are_rounded_before_the_values(dtype):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    quantized = quantize_fp8(weight, scale_dtype=dtype)
    assert quantized.scales.dtype == dtype
    assert torch.equal(quantized.scales, (weight.abs().amax(1, keepdim=True) / 448).to(dtype))
    codes = (weight / quantized.scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(quantized.values.float(), codes.float())


def test_a_row_of_zeros_stays_zero_and_values_saturate():
    weight = torch.zeros(2, 4)
    weight[1] = torch.tensor([3e38, 1.0, -3e38, 0.0])
    dense = quantize_fp8(weight).dequantize()
    assert dense[0].tolist() == [0.0] * 4
    assert bool(torch.isfinite(dense).all())


def test_what_is_not_finite_is_refused():
    with pytest.raises(QuantizationError, match="q_proj holds 1 NaN"):
        quantize_fp8(torch.tensor([[1.0, float("nan")]]), name="q_proj")
