import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.int8 import quantize_int8


def random_matrix() -> torch.Tensor:
    return torch.randn(64, 200, generator=torch.Generator().manual_seed(0))


def test_rows_are_rounded_to_the_nearest_step():
    weight = random_matrix()
    quantized = quantize_int8(weight)
    assert quantized.spec == QuantSpec(8, None)
    assert quantized.scales.dtype == torch.float32
    steps = (weight.double() / quantized.scales).round().clamp(-127, 127)
    assert torch.equal(quantized.codes.double() - 128, steps)
    error = (quantized.dequantize() - weight).abs()
    assert (error <= quantized.scales * 0.5001).all()


def test_scales_are_the_largest_magnitude_over_127_in_bfloat16():
    weight = random_matrix()
    scales = quantize_int8(weight).scales
    assert torch.equal(scales, scales.bfloat16().float())
    exact = weight.abs().amax(1, keepdim=True) / 127
    assert ((scales - exact).abs() <= exact * 2**-8).all()


def test_rounding_the_scales_costs_nothing():
    weight = random_matrix()
    exact = weight.abs().amax(1, keepdim=True) / 127
    plain = ((weight / exact).round() * exact - weight).square().mean()
    assert (quantize_int8(weight).dequantize() - weight).square().mean() < 1.01 * plain


def test_every_way_to_apply_the_scale_gives_the_same_bits():
    """As it is, or 127 times as large and then times 1/127, as LLM.int8 stores it."""
    quantized = quantize_int8(random_matrix())
    values = quantized.codes.float() - 128
    scb = quantized.scales * 127
    assert torch.equal(scb / 127, quantized.scales)
    assert torch.equal(values * scb * (1 / 127), quantized.dequantize())


def test_rows_of_zeros_stay_zeros():
    weight = random_matrix()
    weight[3] = 0
    assert torch.equal(quantize_int8(weight).dequantize()[3], torch.zeros(200))


def test_nan_is_refused_with_the_name():
    with pytest.raises(QuantizationError, match=r"layers\.3\.q_proj"):
        quantize_int8(torch.full((2, 32), float("nan")), name="layers.3.q_proj")
