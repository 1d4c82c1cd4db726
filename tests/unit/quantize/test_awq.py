import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.awq import (
    AWQOptions,
    candidate_scales,
    mean_magnitudes,
    search_scales,
    weight_magnitudes,
)

SPEC = QuantSpec(4, 32, symmetric=False)


def test_mean_magnitudes_survive_half_precision_sums() -> None:
    inputs = torch.full((4096, 2), -60000.0, dtype=torch.float16)
    assert mean_magnitudes(inputs).tolist() == pytest.approx([60000.0, 60000.0], rel=1e-3)


def test_weight_magnitudes_are_shares_of_the_group() -> None:
    weight = torch.zeros(2, 64)
    weight[:, 3] = torch.tensor([2.0, -8.0])  # the largest of group 0 in both rows
    weight[:, 5] = torch.tensor([1.0, 2.0])  # half and a quarter of it
    found = weight_magnitudes(weight, SPEC)
    assert found[3] == 1.0
    assert found[5] == 0.375
    assert found[32:].sum() == 0.0  # a group of zeros is no division by zero


def test_the_first_candidate_is_no_scaling() -> None:
    candidates = candidate_scales(torch.rand(16), torch.rand(16), 20)
    assert len(candidates) == 21
    assert torch.equal(candidates[0], torch.ones(16))


@given(
    means=st.lists(st.floats(0, 2.0**100, width=32), min_size=2, max_size=8),
    num_ratios=st.integers(1, 20),
)
def test_candidates_are_positive_and_centred(means: list[float], num_ratios: int) -> None:
    inputs = torch.tensor(means)
    for scales in candidate_scales(inputs, torch.rand(len(means)), num_ratios):
        assert torch.isfinite(scales).all()
        assert (scales > 0).all()
        assert float(scales.max() * scales.min()) == pytest.approx(1.0, rel=1e-3)


def test_larger_inputs_get_larger_scales() -> None:
    scales = candidate_scales(torch.tensor([0.1, 1.0, 10.0]), torch.ones(3), 4)[3]
    assert scales.tolist() == pytest.approx([10**-0.5, 1.0, 10**0.5])  # the ratio 1/2


@example(length=9, lowest=3.2, unscaled=0.5)  # better than every candidate that is tried first
@given(length=st.integers(1, 40), lowest=st.floats(-5, 45), unscaled=st.floats(0, 50))
def test_search_finds_the_floor_of_a_valley_or_keeps_no_scaling(
    length: int, lowest: float, unscaled: float
) -> None:
    losses = [unscaled, *(abs(index - lowest) for index in range(1, length))]
    tried: list[int] = []

    def loss(scales: torch.Tensor) -> float:
        tried.append(int(scales[0]))
        return losses[tried[-1]]

    found = search_scales([torch.full((2,), float(i)) for i in range(length)], loss)
    assert losses[int(found[0])] == min(losses)
    assert len(tried) == len(set(tried))
    assert len(tried) <= length // 4 + 7


def test_search_keeps_no_scaling_on_ties() -> None:
    found = search_scales([torch.full((1,), float(i)) for i in range(9)], lambda scales: 7.0)
    assert found.tolist() == [0.0]


@pytest.mark.parametrize(("ratios", "tokens"), [(0, 100), (20, 0)])
def test_empty_searches_are_refused(ratios: int, tokens: int) -> None:
    with pytest.raises(QuantizationError, match="no search"):
        AWQOptions(num_ratios=ratios, search_tokens=tokens)
