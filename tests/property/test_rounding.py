import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.formats.quantized import QuantizedWeight, QuantSpec
from llmopt.quantize.rounding import Grid, min_max_grid, quantize_codes, search_grid

specs = st.builds(
    QuantSpec,
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([None, 16, 32, 48]),
    symmetric=st.booleans(),
)


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, exponent = draw(st.integers(1, 5)), draw(st.integers(-6, 3))
    shift = draw(st.sampled_from([0.0, -2.0, 3.0]))
    weight = (torch.randn(rows, 96, generator=generator) + shift) * 10.0**exponent
    return weight * (torch.rand(rows, 96, generator=generator) < draw(st.sampled_from([0.05, 1.0])))


def dequantized(weight: torch.Tensor, grid: Grid, spec: QuantSpec) -> torch.Tensor:
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    return QuantizedWeight(codes, grid.scales, grid.zeros, None, spec).dequantize()


def group_sums(values: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    return values.view(values.shape[0], spec.num_groups(values.shape[1]), -1).sum(-1)


@settings(max_examples=80, deadline=None)
@given(weights(), specs)
def test_min_max_error_is_at_most_about_half_a_step(weight: torch.Tensor, spec: QuantSpec) -> None:
    grid = min_max_grid(weight, spec)
    scale = grid.scales.float().repeat_interleave(spec.columns_per_group(weight.shape[1]), dim=1)
    # the stored scale is within 2^-8 of the exact one, which moves the range's end by that share;
    # below the float16 normal range fewer bits are left
    slack = spec.levels * torch.maximum(scale * 2.0**-8, torch.tensor(2.0**-24))
    # an asymmetric zero point rounds by up to half a step, at either end
    bound = scale * (0.5 if spec.symmetric else 1.0) + slack
    assert ((dequantized(weight, grid, spec) - weight).abs() <= bound * 1.0001).all()


@settings(max_examples=80, deadline=None)
@given(weights(), specs)
def test_rounding_again_changes_nothing(weight: torch.Tensor, spec: QuantSpec) -> None:
    grid = min_max_grid(weight, spec)
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    once = QuantizedWeight(codes, grid.scales, grid.zeros, None, spec).dequantize()
    assert torch.equal(quantize_codes(once, grid.scales, grid.zeros, spec), codes)


@settings(max_examples=60, deadline=None)
@given(weights(), specs, st.booleans())
def test_search_is_never_worse_than_min_max_in_any_group(
    weight: torch.Tensor, spec: QuantSpec, weighted: bool
) -> None:
    importance = torch.linspace(0.0, 2.0, weight.shape[1]) if weighted else None
    cost = torch.ones(weight.shape[1]) if importance is None else importance

    def loss(grid: Grid) -> torch.Tensor:
        return group_sums((dequantized(weight, grid, spec) - weight).square() * cost, spec)

    plain = loss(min_max_grid(weight, spec))
    assert (loss(search_grid(weight, spec, importance)) <= plain * (1 + 1e-5) + 1e-30).all()


@settings(max_examples=60, deadline=None)
@given(weights(), specs)
def test_codes_stay_in_range_and_zero_stays_zero(weight: torch.Tensor, spec: QuantSpec) -> None:
    grid = search_grid(weight, spec)
    codes = quantize_codes(weight, grid.scales, grid.zeros, spec)
    assert int(codes.max()) < spec.levels
    assert (dequantized(weight, grid, spec)[weight == 0] == 0).all()
