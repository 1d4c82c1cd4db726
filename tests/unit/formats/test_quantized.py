import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, concatenate_rows
from llmopt.formats.scales import round_scales


def random_weight(spec: QuantSpec, rows: int, columns: int, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = spec.num_groups(columns)
    zeros = torch.randint(0, spec.levels, (rows, groups), generator=generator, dtype=torch.uint8)
    return QuantizedWeight(
        codes=torch.randint(
            0, spec.levels, (rows, columns), generator=generator, dtype=torch.uint8
        ),
        scales=round_scales(torch.rand(rows, groups, generator=generator) + 0.01),
        zeros=None if spec.symmetric else zeros,
        g_idx=None,
        spec=spec,
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [8, None])
def test_dequantize_is_code_minus_zero_times_scale(symmetric, group_size):
    weight = random_weight(QuantSpec(4, group_size, symmetric), 3, 16)
    dense = weight.dequantize()
    for o in range(3):
        for k in range(16):
            g = k // (group_size or 16)
            zero = 8 if weight.zeros is None else weight.zeros[o, g].item()
            expected = (weight.codes[o, k].item() - zero) * weight.scales[o, g].item()
            assert dense[o, k].item() == pytest.approx(expected, rel=1e-6)


def test_symmetric_zero_points_are_the_midpoint():
    assert random_weight(QuantSpec(4, 8), 3, 16).zero_points().tolist() == [[8, 8]] * 3
    stored = random_weight(QuantSpec(4, 8, symmetric=False), 3, 16)
    assert stored.zero_points() is stored.zeros


def test_g_idx_assigns_columns_to_groups():
    plain = random_weight(QuantSpec(4, 4), 2, 8)
    order = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])
    shuffled = QuantizedWeight(
        codes=plain.codes[:, order],
        scales=plain.scales,
        zeros=None,
        g_idx=(order // 4).to(torch.int32),
        spec=plain.spec,
    )
    assert torch.equal(shuffled.dequantize(), plain.dequantize()[:, order])
    by_group = shuffled.column_order()
    assert by_group is not None
    assert (order[by_group] // 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_stacking_rows_stacks_the_dense_weights():
    parts = [random_weight(QuantSpec(8, 4, symmetric=False), rows, 8, rows) for rows in (2, 3)]
    expected = torch.cat([part.dequantize() for part in parts])
    assert torch.equal(concatenate_rows(parts).dequantize(), expected)


def test_group_size_must_divide_the_row():
    with pytest.raises(QuantizationError, match="576 weights do not divide into groups of 128"):
        QuantSpec(4, 128).num_groups(576)


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        (QuantSpec(4, 64), "gptq-w4g64"),
        (QuantSpec(8, None), "gptq-w8"),
        (QuantSpec(4, 32, symmetric=False), "gptq-w4g32-asym"),
    ],
)
def test_labels(spec, label):
    assert spec.label("gptq") == label


@given(st.floats(min_value=0, max_value=1e6, allow_nan=False))
def test_rounded_scales_are_the_same_number_in_both_16_bit_types(value):
    rounded = round_scales(torch.tensor([value]))
    assert rounded.dtype == torch.float16
    assert torch.isfinite(rounded).all()
    assert rounded.item() > 0
    assert rounded.to(torch.bfloat16).float().item() == rounded.float().item()
    if 2**-14 <= value <= 65000:
        assert rounded.item() == pytest.approx(value, rel=2**-8)
