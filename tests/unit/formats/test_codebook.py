import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from llmopt.formats.codebook import CodebookWeight, NestedAbsmax, codebook


def random_absmax(count: int, *, nested: bool) -> torch.Tensor | NestedAbsmax:
    generator = torch.Generator().manual_seed(count)
    if not nested:
        return torch.rand(count, generator=generator)
    codes = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    scales = torch.rand(-(-count // 32), generator=generator)
    table = torch.randn(256, generator=generator)
    return NestedAbsmax(codes, scales, table, offset=0.25, block_size=32)


def random_weight(rows: int, columns: int, kind, block_size: int, nested: bool) -> CodebookWeight:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    count = -(-rows * columns // block_size)
    return CodebookWeight(codes, random_absmax(count, nested=nested), kind, block_size)


def test_nf4_is_made_of_the_quantiles_of_a_normal_distribution():
    """QLoRA's construction: 8 quantiles above zero, 7 below, scaled to 1."""
    tail = 0.9677083
    positive = norm.ppf(torch.linspace(tail, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -norm.ppf(torch.linspace(tail, 0.5, 8, dtype=torch.float64)[:-1])
    expected = torch.tensor(sorted([*positive, 0.0, *negative])) / positive.max()
    torch.testing.assert_close(codebook("nf4").double(), expected, rtol=0, atol=2e-7)


def test_fp4_is_sign_exponent_and_mantissa():
    expected = []
    for code in range(16):
        sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
        magnitude = (1 + mantissa / 2) * 2 ** (4 - exponent) if exponent else mantissa / 16
        expected.append((-magnitude if sign else magnitude) / 12)
    assert torch.equal(codebook("fp4"), torch.tensor(expected))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@given(rows=st.integers(1, 5), columns=st.integers(1, 100), block_size=st.sampled_from([32, 64]))
def test_each_weight_is_its_value_times_the_scale_of_its_block(
    kind, nested, rows, columns, block_size
):
    weight = random_weight(rows, columns, kind, block_size, nested)
    dense, values = weight.dequantize(), codebook(kind)
    for row in range(rows):
        for column in range(columns):
            block = (row * columns + column) // block_size
            stored = weight.stored_absmax
            if isinstance(stored, NestedAbsmax):
                scale = stored.table[int(stored.codes[block])] * stored.absmax[block // 32]
                scale = scale + torch.tensor(stored.offset)
            else:
                scale = stored[block]
            assert dense[row, column] == values[int(weight.codes[row, column])] * scale
            assert weight.absmax[block] == scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dequantizing_rounds_once(dtype):
    weight = random_weight(7, 33, "nf4", 32, nested=True)
    assert torch.equal(weight.dequantize(dtype), weight.dequantize().to(dtype))


@pytest.mark.parametrize("nested", [False, True])
def test_a_weight_moves_to_a_device_whole(nested):
    weight = random_weight(4, 33, "fp4", 32, nested)
    moved = weight.to(torch.device("meta"))
    assert moved.codes.is_meta
    assert moved.absmax.is_meta
    assert moved.shape == weight.shape == (4, 33)
    assert weight.label == "fp4"


def test_scales_must_be_one_per_block():
    with pytest.raises(AssertionError):
        CodebookWeight(torch.zeros(2, 33, dtype=torch.uint8), torch.ones(2), "nf4", 32)
