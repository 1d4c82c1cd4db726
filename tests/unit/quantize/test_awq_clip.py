import pytest
import torch

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.quantize.awq_clip import diagonal_blocks, group_losses, search_clip
from llmopt.quantize.gptq import accumulate_hessian
from llmopt.quantize.rounding import Grid, min_max_grid, quantize_codes

SPECS = [QuantSpec(4, 32, symmetric=False), QuantSpec(4, 32), QuantSpec(3, None, symmetric=False)]


def random_case(rows: int = 40, columns: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(500, columns, generator=generator) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    weight[:, ::17] *= 4.0  # an outlier in every group
    return weight, inputs


def error_of(weight: torch.Tensor, grid: Grid, spec: QuantSpec) -> torch.Tensor:
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    return QuantizedWeight(codes, grid.scales, grid.zeros, None, spec).dequantize() - weight


def test_group_losses_are_squared_errors_of_partial_outputs() -> None:
    weight, inputs = random_case()
    blocks = diagonal_blocks(accumulate_hessian(inputs), 3)
    found = group_losses(weight, blocks)
    for group in range(3):
        columns = slice(32 * group, 32 * (group + 1))
        outputs = inputs[:, columns] @ weight[:, columns].T
        assert torch.allclose(found[:, group], outputs.square().mean(0), rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_no_group_loses_and_most_gain(spec: QuantSpec) -> None:
    weight, inputs = random_case()
    hessian = accumulate_hessian(inputs)
    blocks = diagonal_blocks(hessian, spec.num_groups(96))
    before = group_losses(error_of(weight, min_max_grid(weight, spec), spec), blocks)
    after = group_losses(error_of(weight, search_clip(weight, hessian, spec), spec), blocks)
    assert (after <= before * (1 + 1e-5)).all()
    assert (after < before).float().mean() > 0.7
    assert after.sum() < 0.9 * before.sum()


def test_rows_do_not_depend_on_their_chunk() -> None:
    weight, inputs = random_case(rows=3000)
    hessian = accumulate_hessian(inputs)
    together = search_clip(weight, hessian, SPECS[0])
    alone = search_clip(weight[1400:1404], hessian, SPECS[0])
    assert torch.equal(together.scales[1400:1404], alone.scales)
    assert together.zeros is not None
    assert alone.zeros is not None
    assert torch.equal(together.zeros[1400:1404], alone.zeros)


def test_range_follows_the_columns_that_matter() -> None:
    weight, _ = random_case()
    outliers = torch.zeros(96, dtype=torch.bool)
    outliers[::17] = True
    for_outliers = search_clip(weight, torch.diag(torch.where(outliers, 1.0, 1e-6)), SPECS[0])
    for_others = search_clip(weight, torch.diag(torch.where(outliers, 1e-6, 1.0)), SPECS[0])
    assert for_others.scales.float().mean() < 0.8 * for_outliers.scales.float().mean()
    errors = [error_of(weight, grid, SPECS[0]).square() for grid in (for_outliers, for_others)]
    assert errors[0][:, outliers].mean() < 0.5 * errors[1][:, outliers].mean()
    assert errors[1][:, ~outliers].mean() < 0.5 * errors[0][:, ~outliers].mean()
