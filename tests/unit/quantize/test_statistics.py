import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.quantize.gptq import accumulate_hessian
from llmopt.quantize.statistics import Wanted, gather


@pytest.fixture
def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(300, 48, generator=generator) * torch.linspace(0.1, 9, 48)


@pytest.mark.parametrize("chunk", [300, 128, 7])
def test_sums_over_chunks_are_those_over_everything(inputs: torch.Tensor, chunk: int) -> None:
    found = gather(inputs.split(chunk), 300, Wanted(hessian=True), "x")
    assert torch.allclose(found.mean_magnitude, inputs.abs().mean(dim=0))
    assert torch.allclose(found.mean_square, inputs.square().mean(dim=0))
    assert torch.equal(found.largest, inputs.abs().amax(dim=0))
    assert found.hessian is not None
    assert torch.allclose(found.hessian, accumulate_hessian(inputs), rtol=1e-4, atol=1e-4)
    assert found.sample is None


def test_a_statistic_does_not_depend_on_the_others(inputs: torch.Tensor) -> None:
    rows = torch.tensor([3, 130, 299])
    alone = gather(inputs.split(100), 300, Wanted(), "x")
    together = gather(inputs.split(100), 300, Wanted(True, rows), "x")
    assert torch.equal(alone.mean_square, together.mean_square)
    assert torch.equal(alone.mean_magnitude, together.mean_magnitude)
    assert together.sample is not None
    assert torch.equal(together.sample, inputs[rows])


def test_scaled_statistics_are_those_of_scaled_inputs(inputs: torch.Tensor) -> None:
    scales = torch.linspace(0.25, 4, 48)
    found = gather([inputs], 300, Wanted(True), "x").scaled(scales)
    expected = gather([inputs / scales], 300, Wanted(True), "x")
    for name in ("mean_magnitude", "mean_square", "largest", "hessian"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_inputs_that_overflow_are_refused_by_name(inputs: torch.Tensor, bad: float) -> None:
    inputs[200, 5] = bad
    with pytest.raises(QuantizationError, match="the input of block 3"):
        gather(inputs.split(64), 300, Wanted(), "block 3")


def test_a_missing_token_is_our_own_mistake(inputs: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match="every token"):
        gather(inputs.split(64), 301, Wanted(), "x")


def test_half_precision_is_summed_in_single(inputs: torch.Tensor) -> None:
    large = (inputs * 300).half()  # squares overflow float16
    found = gather([large], 300, Wanted(True), "x")
    assert torch.isfinite(found.mean_square).all()
    assert found.hessian is not None
    assert found.hessian.dtype == torch.float32
