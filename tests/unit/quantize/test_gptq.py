import pytest
import torch

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec
from llmopt.quantize.gptq import (
    ActOrder,
    GPTQOptions,
    accumulate_hessian,
    quantize_gptq,
    row_energies,
)
from llmopt.quantize.rounding import min_max_grid, quantize_codes
from llmopt.quantize.rtn import quantize_rtn

SPEC = QuantSpec(4, 32)


def random_case(
    rows: int = 48, columns: int = 96, tokens: int = 400, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Hessian of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    sizes = torch.randn(columns, generator=generator).exp()
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing * sizes
    return torch.randn(rows, columns, generator=generator) * 0.1, accumulate_hessian(inputs)


def textbook_codes(
    weight: torch.Tensor, hessian: torch.Tensor, spec: QuantSpec, damping: float, act_order: bool
) -> torch.Tensor:
    """GPTQ as the paper states it, one column at a time, in float64, without blocks."""
    grid = min_max_grid(weight, spec)
    scales = grid.scales.double()
    size = spec.columns_per_group(weight.shape[1])
    work, matrix = weight.double().clone(), hessian.double().clone()
    matrix += damping * matrix.diagonal().mean() * torch.eye(len(matrix))
    columns = list(range(weight.shape[1]))
    if act_order:
        columns.sort(key=lambda k: -float(hessian[k, k]))
    inverse = torch.linalg.inv(matrix[columns][:, columns])
    upper = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.zeros_like(work)
    for i, column in enumerate(columns):
        scale = scales[:, column // size]
        steps = torch.round(work[:, column] / scale).clamp(-8, 7)
        codes[:, column] = steps + 8
        error = (work[:, column] - steps * scale) / upper[i, i]
        for j in range(i + 1, len(columns)):
            work[:, columns[j]] -= error * upper[i, j]
    return codes.to(torch.uint8)


@pytest.mark.parametrize("act_order", ["static", "none"])
@pytest.mark.parametrize("block_size", [1, 7, 32, 128])
def test_codes_equal_the_textbook_algorithm(act_order: ActOrder, block_size: int) -> None:
    weight, hessian = random_case()
    options = GPTQOptions(act_order=act_order, block_size=block_size, scale_search=False)
    found = quantize_gptq(weight, hessian, SPEC, options).weight.codes
    expected = textbook_codes(weight, hessian, SPEC, 0.01, act_order == "static")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("spec", [SPEC, QuantSpec(4, None), QuantSpec(3, 48, symmetric=False)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_is_well_below_plain_rounding(spec: QuantSpec, seed: int) -> None:
    weight, hessian = random_case(seed=seed)
    rounded = row_energies(weight - quantize_rtn(weight, spec).dequantize(), hessian).mean()
    assert quantize_gptq(weight, hessian, spec).loss < 0.6 * float(rounded)


def test_loss_belongs_to_the_weight_that_is_returned() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 64, generator=generator) * 3
    weight = torch.randn(16, 64, generator=generator)
    result = quantize_gptq(weight, accumulate_hessian(inputs), SPEC)
    error = inputs.double() @ (weight - result.weight.dequantize()).double().T
    assert result.loss == pytest.approx(float(error.square().mean()), rel=1e-3)
    assert torch.allclose(
        result.row_energies.double(), (inputs.double() @ weight.double().T).square().mean(0)
    )


def test_scale_search_lowers_the_loss() -> None:
    weight, hessian = random_case(rows=128)
    searched = quantize_gptq(weight, hessian, SPEC, GPTQOptions(scale_search=True)).loss
    assert (
        searched < 0.95 * quantize_gptq(weight, hessian, SPEC, GPTQOptions(scale_search=False)).loss
    )


def test_act_order_lowers_the_loss_when_inputs_differ_in_size() -> None:
    losses = {"static": 0.0, "none": 0.0}
    for seed in range(4):
        weight, hessian = random_case(seed=seed)
        losses["static"] += quantize_gptq(weight, hessian, SPEC).loss
        losses["none"] += quantize_gptq(weight, hessian, SPEC, GPTQOptions(act_order="none")).loss
    assert losses["static"] < losses["none"]


def test_groups_stay_in_natural_column_order() -> None:
    weight, hessian = random_case()
    weight[:, 32:64] *= 100.0
    result = quantize_gptq(weight, hessian, SPEC)
    assert result.weight.g_idx is None
    scales = result.weight.scales.float().abs()
    assert (scales[:, 1] > 10 * torch.maximum(scales[:, 0], scales[:, 2])).all()


def test_rows_do_not_influence_each_other() -> None:
    weight, hessian = random_case()
    stacked = quantize_gptq(weight, hessian, SPEC).weight
    alone = quantize_gptq(weight[10:20], hessian, SPEC).weight
    assert torch.equal(stacked.codes[10:20], alone.codes)
    assert torch.equal(stacked.scales[10:20], alone.scales)


def test_independent_inputs_leave_plain_rounding() -> None:
    weight, _ = random_case()
    options = GPTQOptions(scale_search=False)
    result = quantize_gptq(weight, torch.eye(96), SPEC, options)
    assert torch.equal(result.weight.codes, quantize_rtn(weight, SPEC).codes)


def test_dead_columns_are_rounded_to_nearest_and_counted() -> None:
    weight, hessian = random_case()
    dead = [4, 50, 95]
    hessian[dead] = 0.0
    hessian[:, dead] = 0.0
    result = quantize_gptq(weight, hessian, SPEC)
    nearest = quantize_codes(weight, result.weight.scales, None, SPEC)
    assert result.dead_columns == 3
    assert torch.equal(result.weight.codes[:, dead], nearest[:, dead])
    assert not torch.equal(result.weight.codes, nearest)


def test_all_dead_inputs_give_plain_rounding_and_no_loss() -> None:
    weight, _ = random_case()
    result = quantize_gptq(weight, torch.zeros(96, 96), SPEC)
    assert result.dead_columns == 96
    assert result.loss == 0.0
    assert torch.equal(result.weight.codes, quantize_rtn(weight, SPEC).codes)


def test_fewer_tokens_than_columns_is_solved_by_damping() -> None:
    weight, hessian = random_case(tokens=8)
    result = quantize_gptq(weight, hessian, SPEC)
    assert result.damping == 0.01
    rounded = row_energies(weight - quantize_rtn(weight, SPEC).dequantize(), hessian).mean()
    assert result.loss < 0.2 * float(rounded)


def test_damping_grows_until_the_hessian_can_be_factored() -> None:
    weight, hessian = random_case()
    vectors = torch.linalg.eigh(hessian).eigenvectors
    values = torch.linspace(0.5, 1.5, 96)
    values[0] = -0.05  # such as half precision sums leave behind; the mean diagonal is near 1
    broken = vectors @ torch.diag(values) @ vectors.T
    result = quantize_gptq(weight, broken, SPEC)
    assert result.damping == pytest.approx(0.16)  # after 0.01 and 0.04


def test_hopeless_hessian_falls_back_to_plain_rounding_and_says_so() -> None:
    weight, _ = random_case()
    indefinite = torch.full((96, 96), -5.0)
    indefinite.diagonal().fill_(1.0)
    result = quantize_gptq(weight, indefinite, SPEC, GPTQOptions(scale_search=False))
    assert result.damping is None
    assert torch.equal(result.weight.codes, quantize_rtn(weight, SPEC).codes)


def test_eight_bits_are_nearly_lossless() -> None:
    weight, hessian = random_case()
    result = quantize_gptq(weight, hessian, QuantSpec(8, 32))
    assert result.loss < 1e-4 * float(result.row_energies.mean())


def test_hessian_is_the_mean_of_outer_products_whatever_the_chunks() -> None:
    inputs = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    expected = (inputs.double().T @ inputs.double() / 5000).float()
    assert torch.allclose(accumulate_hessian(inputs), expected, atol=1e-5)


def test_hessian_of_half_precision_inputs_is_float32() -> None:
    inputs = torch.full((3000, 32), 0.1, dtype=torch.bfloat16)
    hessian = accumulate_hessian(inputs)
    assert hessian.dtype == torch.float32
    assert torch.allclose(hessian, inputs[:1].float().T @ inputs[:1].float(), rtol=1e-5)


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    weight, hessian = random_case()
    with pytest.raises(QuantizationError, match="the Hessian of o_proj"):
        quantize_gptq(weight, hessian * float("inf"), SPEC, name="o_proj")
    with pytest.raises(QuantizationError, match=r"^o_proj"):
        quantize_gptq(weight / 0.0, hessian, SPEC, name="o_proj")


@pytest.mark.parametrize("damping", [0.0, -0.01, 2.0, float("nan")])
def test_senseless_damping_is_refused(damping: float) -> None:
    with pytest.raises(QuantizationError, match="damping"):
        GPTQOptions(damping=damping)
