"""The corrected weight solves the least squares problem that it says it solves."""

import pytest
import torch

from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.gptq import accumulate_hessian, quantize_gptq
from llmopt.quantize.qronos import corrected_weight


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def inputs(generator: torch.Generator, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [T, K] of the original model, and what a quantized prefix makes of them."""
    mixing = torch.randn(32, 32, generator=generator)
    original = torch.randn(512, 32, generator=generator) @ mixing
    return original, original + noise * torch.randn(512, 32, generator=generator)


def cross_moment(original: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    return (original - quantized).T @ quantized / len(original)


def test_equal_inputs_change_nothing(generator: torch.Generator) -> None:
    original, _ = inputs(generator, 0.0)
    weight = torch.randn(8, 32, generator=generator)
    hessian = accumulate_hessian(original)
    assert torch.equal(corrected_weight(weight, hessian, torch.zeros(32, 32)), weight)


def test_it_is_the_least_squares_solution(generator: torch.Generator) -> None:
    original, quantized = inputs(generator, 2.0)
    weight = torch.randn(8, 32, generator=generator)
    hessian, cross = accumulate_hessian(quantized), cross_moment(original, quantized)
    found = corrected_weight(weight, hessian, cross, ridge=1e-7)
    expected = torch.linalg.lstsq(quantized.double(), original.double() @ weight.T.double())
    torch.testing.assert_close(found.double(), expected.solution.T, atol=1e-3, rtol=1e-3)


def test_a_large_ridge_keeps_the_weight(generator: torch.Generator) -> None:
    original, quantized = inputs(generator, 2.0)
    weight = torch.randn(8, 32, generator=generator)
    hessian, cross = accumulate_hessian(quantized), cross_moment(original, quantized)
    found = corrected_weight(weight, hessian, cross, ridge=1e6)
    torch.testing.assert_close(found, weight, atol=1e-4, rtol=1e-4)


def test_rounding_the_corrected_weight_is_nearer_to_the_original_outputs(
    generator: torch.Generator,
) -> None:
    original, quantized = inputs(generator, 2.0)
    weight = torch.randn(16, 32, generator=generator)
    hessian, cross = accumulate_hessian(quantized), cross_moment(original, quantized)

    def error(target: torch.Tensor) -> float:
        rounded = quantize_gptq(target, hessian, QuantSpec(4, 16, False)).weight.dequantize()
        return float((quantized @ rounded.T - original @ weight.T).square().mean())

    assert error(corrected_weight(weight, hessian, cross, ridge=0.01)) < 0.8 * error(weight)
    assert error(corrected_weight(weight, hessian, cross)) < error(weight)


def test_an_unused_input_keeps_its_weights(generator: torch.Generator) -> None:
    original, quantized = inputs(generator, 1.0)
    original[:, 5] = quantized[:, 5] = 0.0
    weight = torch.randn(8, 32, generator=generator)
    hessian, cross = accumulate_hessian(quantized), cross_moment(original, quantized)
    found = corrected_weight(weight, hessian, cross)
    torch.testing.assert_close(found[:, 5], weight[:, 5])
