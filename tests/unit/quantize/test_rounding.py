import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.quantize.rounding import Grid, check_finite, min_max_grid, quantize_codes, search_grid

W4G32 = QuantSpec(4, 32)


def dequantized(weight: torch.Tensor, grid: Grid, spec: QuantSpec) -> torch.Tensor:
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    return QuantizedWeight(codes, grid.scales, grid.zeros, None, spec).dequantize()


def test_symmetric_scale_is_twice_the_maximum_over_the_steps() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 3], weight[0, 40] = -7.5, 15.0
    grid = min_max_grid(weight, W4G32)
    assert grid.scales.tolist() == [[1.0, 2.0]]
    assert grid.zeros is None


def test_asymmetric_grid_covers_the_range_with_an_integer_zero() -> None:
    spec = QuantSpec(4, 32, symmetric=False)
    weight = torch.linspace(-1.0, 14.0, 32)[None]
    grid = min_max_grid(weight, spec)
    assert grid.scales.tolist() == [[1.0]]
    assert grid.zeros is not None
    assert grid.zeros.tolist() == [[1]]
    assert (dequantized(weight, grid, spec) - weight).abs().max() <= 0.5


def test_all_positive_group_keeps_zero_in_its_asymmetric_range() -> None:
    spec = QuantSpec(4, None, symmetric=False)
    grid = min_max_grid(torch.full((1, 32), 3.0), spec)
    assert grid.zeros is not None
    assert grid.zeros.tolist() == [[0]]


def test_group_of_zeros_gets_scale_one_and_the_zero_point() -> None:
    weight = torch.zeros(2, 64)
    for grid in (min_max_grid(weight, W4G32), search_grid(weight, W4G32)):
        assert torch.equal(grid.scales, torch.ones(2, 2, dtype=torch.float16))
        assert quantize_codes(weight, grid.scales, grid.zeros, W4G32).unique().tolist() == [8]


def test_per_channel_spec_has_one_group_per_row() -> None:
    grid = min_max_grid(torch.randn(5, 96), QuantSpec(8, None))
    assert grid.scales.shape == (5, 1)


def test_scales_are_exact_in_both_half_types() -> None:
    grid = search_grid(torch.randn(8, 64) * 0.1, W4G32)
    scales = grid.scales.float()
    assert torch.equal(scales, scales.bfloat16().float())


def test_search_shrinks_the_range_of_a_group_with_one_outlier() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    weight[:, 7] = 8.0
    plain, found = min_max_grid(weight, W4G32), search_grid(weight, W4G32)
    assert (found.scales.abs() < plain.scales).all()
    plain_error = (dequantized(weight, plain, W4G32) - weight).square().sum()
    found_error = (dequantized(weight, found, W4G32) - weight).square().sum()
    assert found_error < 0.8 * plain_error


def test_search_turns_the_scale_negative_where_the_positive_side_needs_the_extra_level() -> None:
    weight = torch.arange(-7.0, 9.0).repeat(2)[None]  # exactly 16 levels, the longer side positive
    grid = search_grid(weight, W4G32)
    assert grid.scales.item() < 0
    assert (dequantized(weight, grid, W4G32) - weight).square().sum() < 2.0
    assert (dequantized(weight, min_max_grid(weight, W4G32), W4G32) - weight).square().sum() > 2.0


def test_search_protects_the_important_columns() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 32, generator=generator)
    importance = torch.full((32,), 1e-3)
    importance[5] = 1.0
    plain, weighted = search_grid(weight, W4G32), search_grid(weight, W4G32, importance)
    error = dequantized(weight, weighted, W4G32)[:, 5] - weight[:, 5]
    assert error.square().mean() < 0.1 * (
        (dequantized(weight, plain, W4G32)[:, 5] - weight[:, 5]).square().mean()
    )


def test_search_over_row_chunks_equals_search_of_each_row() -> None:
    weight = torch.randn(300, 1024, generator=torch.Generator().manual_seed(2))
    together = search_grid(weight, QuantSpec(4, 64))
    alone = torch.cat([search_grid(row[None], QuantSpec(4, 64)).scales for row in weight[125:131]])
    assert torch.equal(together.scales[125:131], alone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weight_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    weight = torch.ones(4, 4)
    weight[1, 2] = bad
    with pytest.raises(QuantizationError, match=r"q_proj holds 1 NaN or infinite values of 16"):
        check_finite("q_proj", weight)


def test_weight_beyond_float16_scales_is_refused() -> None:
    with pytest.raises(QuantizationError, match="beyond float16"):
        min_max_grid(torch.full((1, 32), 1e7), W4G32)
