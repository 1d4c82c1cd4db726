import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import QuantizationError
from llmopt.formats.codebook import NestedAbsmax, codebook
from llmopt.quantize.codebook import dynamic_table, quantize_absmax, quantize_codebook

KINDS = pytest.mark.parametrize("kind", ["nf4", "fp4"])


def random_matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))


def nearest_distance(scaled: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Of each value to the nearest one in the table, by trying them all."""
    return (scaled.double().unsqueeze(-1) - table.double()).abs().amin(-1)


@KINDS
@given(rows=st.integers(1, 6), columns=st.integers(1, 90), block_size=st.sampled_from([32, 64]))
def test_every_code_is_a_nearest_one(kind, rows, columns, block_size):
    weight = random_matrix(rows, columns)
    quantized = quantize_codebook(weight, kind, block_size=block_size)
    flat = weight.flatten()
    blocks = [flat[i : i + block_size] for i in range(0, len(flat), block_size)]
    assert quantized.absmax.tolist() == [block.abs().max().item() for block in blocks]
    scaled = torch.cat([block.double() / block.abs().max().double() for block in blocks])
    table = codebook(kind)
    found = (scaled - table[quantized.codes.flatten().int()].double()).abs()
    torch.testing.assert_close(found, nearest_distance(scaled, table), rtol=0, atol=1e-7)


@KINDS
def test_a_weight_halfway_takes_the_lower_value(kind):
    values = codebook(kind).unique()
    halves = (values[:-1] + values[1:]) / 2
    weight = torch.cat([torch.ones(1), halves, torch.zeros(32 - 1 - len(halves))])[None]
    dense = quantize_codebook(weight, kind, block_size=32).dequantize()
    assert torch.equal(dense[0, 1 : len(halves) + 1], values[:-1])


@KINDS
@pytest.mark.parametrize("double_quant", [False, True])
def test_zeros_stay_zeros(kind, double_quant):
    quantized = quantize_codebook(torch.zeros(3, 50), kind, double_quant=double_quant)
    assert torch.equal(quantized.dequantize(), torch.zeros(3, 50))


def test_tiny_weights_do_not_overflow():
    weight = torch.full((1, 64), 1e-40)
    assert quantize_codebook(weight, "nf4").dequantize().isfinite().all()


@KINDS
def test_half_precision_weights_are_rounded_from_their_exact_values(kind):
    weight = random_matrix(8, 64).bfloat16()
    from_half, from_float = quantize_codebook(weight, kind), quantize_codebook(weight.float(), kind)
    assert torch.equal(from_half.codes, from_float.codes)
    assert torch.equal(from_half.absmax, from_float.absmax)


def test_large_matrices_are_the_sum_of_their_blocks():
    weight = random_matrix(300, 1000)
    whole = quantize_codebook(weight, "nf4")
    tail = quantize_codebook(weight.flatten()[64 * 4000 :][None], "nf4")
    assert torch.equal(whole.codes.flatten()[64 * 4000 :], tail.codes.flatten())
    assert torch.equal(whole.absmax[4000:], tail.absmax)


@KINDS
def test_double_quantization_moves_the_scales_only_a_little(kind):
    weight = random_matrix(64, 1000)
    plain = quantize_codebook(weight, kind)
    double = quantize_codebook(weight, kind, double_quant=True)
    assert torch.equal(plain.codes, double.codes)
    assert ((plain.absmax - double.absmax).abs() / plain.absmax).max() < 0.02


@given(count=st.integers(1, 600))
def test_nested_scales_are_nearest_values_around_the_mean(count):
    absmax = torch.rand(count, generator=torch.Generator().manual_seed(count)) + 0.5
    nested = quantize_absmax(absmax)
    assert isinstance(nested, NestedAbsmax)
    assert nested.offset == pytest.approx(absmax.double().mean().item(), rel=1e-6)
    centred = absmax - torch.tensor(nested.offset)
    for block, part in enumerate(centred.split(256)):
        assert nested.absmax[block] == part.abs().max()
        scaled = part / part.abs().max().clamp(min=1e-30)
        found = (scaled - nested.table[nested.codes[256 * block :][: len(part)].int()]).abs()
        expected = nearest_distance(scaled, nested.table)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)


def test_the_dynamic_table_has_the_values_of_its_definition():
    """For each power of ten, the centres of 1, 2, 4 ... 64 equal parts of [0.1, 1]; 0 and 1."""
    expected = [0.0, 1.0]
    for exponent in range(7):
        parts = 2**exponent
        for part in range(parts):
            centre = 0.1 + 0.9 * (part + 0.5) / parts
            expected += [centre * 10 ** (exponent - 6), -centre * 10 ** (exponent - 6)]
    table = dynamic_table()
    assert table.shape == (256,)
    assert torch.equal(table, table.unique())
    wanted = torch.tensor(sorted(expected), dtype=torch.float64)
    torch.testing.assert_close(table.double(), wanted, rtol=2e-7, atol=0)


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(QuantizationError, match=r"layers\.3\.q_proj"):
        quantize_codebook(torch.full((2, 32), float("nan")), "nf4", name="layers.3.q_proj")
    with pytest.raises(QuantizationError, match=r"blocks of 48 .* 32, 64"):
        quantize_codebook(torch.zeros(2, 48), "nf4", block_size=48)
