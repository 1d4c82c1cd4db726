import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.rtn import quantize_rtn


def test_codes_are_the_nearest_on_the_min_max_grid() -> None:
    weight = torch.tensor([[-7.5, -1.4, 0.0, 0.6, 7.4] + [0.0] * 27])
    quantized = quantize_rtn(weight, QuantSpec(4, 32))
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.codes[0, :5].tolist() == [0, 7, 8, 9, 15]


@pytest.mark.parametrize("symmetric", [True, False])
def test_eight_bits_are_nearly_lossless(symmetric: bool) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    error = quantize_rtn(weight, QuantSpec(8, 64, symmetric)).dequantize() - weight
    assert error.square().mean() / weight.square().mean() < 1e-4


def test_half_precision_weights_are_rounded_from_their_exact_values() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    from_half = quantize_rtn(weight, QuantSpec(4, 32))
    from_float = quantize_rtn(weight.float(), QuantSpec(4, 32))
    assert torch.equal(from_half.codes, from_float.codes)


def test_nan_is_refused_with_the_name() -> None:
    with pytest.raises(QuantizationError, match=r"layers\.3\.q_proj"):
        quantize_rtn(torch.full((2, 32), float("nan")), QuantSpec(4, 32), name="layers.3.q_proj")
