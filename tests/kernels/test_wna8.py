"""Coded weights with int8 inputs: every instruction set against the reference."""

import ctypes
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_case import EVERY_SET, libraries, library_of

from llmopt_kernels.native.linear_weight import NativeWeight, multiply
from llmopt_kernels.wna8.native import GroupNumbers, can_pack_groups, pack_codes
from llmopt_kernels.wna8.reference import quantize_steps, wna8_reference

SCALE_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def numbers(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.rand(shape, generator=generator) * 0.1 + 0.01).to(dtype)


def small(generator: torch.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
    dtype = torch.int8 if low < 0 else torch.uint8
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def per_column(values: torch.Tensor, columns: int) -> torch.Tensor:
    return values.float().repeat_interleave(columns // values.shape[1], dim=1)


def assert_matches_reference(out, x, weight: NativeWeight, dense: torch.Tensor) -> None:
    """Only the order of float32 sums may differ: by some units of what the terms add up to."""
    step, parts = weight.struct.step, weight.struct.parts
    expected = wna8_reference(x, dense, step, parts)
    terms = wna8_reference(x.abs(), dense.abs(), step) + expected.abs()
    assert out.shape == expected.shape
    excess = (out.double() - expected).abs() - 1e-5 * terms - 1e-6
    assert (excess <= 0).all(), f"off by {excess.max():.2e} more than float32 sums may be"


@st.composite
def cases(draw):
    group = draw(st.sampled_from([16, 32, 48, 64, 128, 256, None]))
    columns = draw(st.integers(1, 300)) if group is None else group * draw(st.integers(1, 4))
    return {
        "rows": draw(st.integers(1, 90)),
        "columns": columns,
        "groups": 1 if group is None else columns // group,
        "tokens": draw(st.integers(1, 21)),
        "bits": draw(st.sampled_from([3, 4, 5, 6, 8])),
        "parts": draw(st.sampled_from([1, 2])),
        "zeros": draw(st.sampled_from(["none", "middle", "groups"])),
        "offsets": draw(st.booleans()),
        "dtype": draw(st.sampled_from(SCALE_DTYPES)),
        "seed": draw(st.integers(0, 999)),
    }


@pytest.mark.parametrize("number", EVERY_SET)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_layout_equals_the_reference(number, case):
    library = library_of(number)
    generator = torch.Generator().manual_seed(case["seed"])
    rows, columns, groups, bits = (case[name] for name in ("rows", "columns", "groups", "bits"))
    codes = small(generator, 0, 1 << bits, rows, columns)
    scales = numbers(generator, rows, groups, dtype=case["dtype"])
    zeros: torch.Tensor | int = {"none": 0, "middle": 1 << (bits - 1)}.get(case["zeros"], 0)
    if case["zeros"] == "groups":
        zeros = small(generator, 0, 1 << bits, rows, groups)
    shift = numbers(generator, rows, groups, dtype=torch.float16) if case["offsets"] else None
    weight = pack_codes(
        codes,
        GroupNumbers(scales),
        bits=bits,
        zeros=zeros,
        offsets=None if shift is None else GroupNumbers(shift),
        parts=case["parts"],
    )
    zero = per_column(zeros, columns) if isinstance(zeros, torch.Tensor) else float(zeros)
    dense = (codes.float() - zero) * per_column(scales, columns)
    if shift is not None:
        dense = dense + per_column(shift, columns)
    x = torch.randn(case["tokens"], columns, generator=generator)
    assert_matches_reference(multiply(library, weight, x, 1), x, weight, dense)


@pytest.mark.parametrize("number", EVERY_SET)
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_small_integers_multiply_the_numbers_of_their_super_group(number, bits):
    library = library_of(number)
    generator = torch.Generator().manual_seed(bits)
    codes = small(generator, 0, 1 << bits, 20, 512)
    scales = GroupNumbers(
        small(generator, -128, 128, 20, 16), numbers(generator, 20, 2, dtype=torch.float16)
    )
    offsets = GroupNumbers(
        small(generator, 0, 256, 20, 16), numbers(generator, 20, 2, dtype=torch.float16)
    )
    weight = pack_codes(codes, scales, bits=bits, zeros=3, offsets=offsets)
    scale, offset = (
        per_column(each.values, 512) * per_column(each.shared, 512) for each in (scales, offsets)
    )
    x = torch.randn(5, 512, generator=generator)
    dense = (codes.float() - 3) * scale - offset
    assert_matches_reference(multiply(library, weight, x, 1), x, weight, dense)


@pytest.mark.parametrize("number", EVERY_SET)
@pytest.mark.parametrize("tokens", [1, 2, 5, 19])
def test_two_parts_leave_fifteen_bits_of_an_input(number, tokens):
    library = library_of(number)
    generator = torch.Generator().manual_seed(tokens)
    codes = small(generator, 0, 256, 40, 96)
    scales = numbers(generator, 40, 3, dtype=torch.float32)
    dense = (codes.float() - 128) * per_column(scales, 96)
    x = torch.randn(tokens, 96, generator=generator)
    one, two = (
        multiply(library, pack_codes(codes, GroupNumbers(scales), bits=8, zeros=128, parts=n), x, 2)
        for n in (1, 2)
    )
    exact = x.double() @ dense.double().T
    largest = per_column(x.view(tokens, 3, 32).abs().amax(dim=2), 96)
    half_units = (largest.double() / 127 / 254 / 2) @ dense.abs().double().T
    assert ((two - exact).abs() <= 1.1 * half_units + 1e-5 * exact.abs()).all()
    assert (two - exact).norm() < (one - exact).norm() / 50


@pytest.mark.parametrize("number", EVERY_SET)
def test_codes_stand_for_the_levels_of_a_table(number):
    library = library_of(number)
    generator = torch.Generator().manual_seed(1)
    codes = small(generator, 0, 16, 33, 96)
    table = torch.tensor([-128, -127, -100, -64, -3, -2, -1, 0, 1, 2, 3, 5, 64, 99, 126, 127.0])
    scales = numbers(generator, 33, 3, dtype=torch.float32)
    weight = pack_codes(codes, GroupNumbers(scales), bits=4, table=table)
    x = torch.randn(6, 96, generator=generator)
    dense = table[codes.int()] * per_column(scales, 96)
    assert_matches_reference(multiply(library, weight, x, 1), x, weight, dense)


@pytest.mark.parametrize("number", EVERY_SET)
def test_the_largest_codes_and_inputs_do_not_saturate(number):
    library = library_of(number)
    codes = torch.full((16, 256), 255, dtype=torch.uint8)
    weight = pack_codes(codes, GroupNumbers(torch.ones(16, 2)), bits=8)
    x = torch.full((9, 256), 127.0)
    assert (multiply(library, weight, x, 1) == 255 * 127 * 256).all()
    assert (multiply(library, weight, -x, 1) == -255 * 127 * 256).all()


def awkward_inputs(generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(64, 128, generator=generator) * torch.logspace(-20, 20, 64).unsqueeze(1)
    x[3] = 0.0
    x[4] = 1e-38
    x[5, :32] = torch.arange(-16, 16) + 0.5  # with a maximum of 127 these are ties
    x[5, 0] = 127.0
    return x


@pytest.mark.parametrize("number", EVERY_SET)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_rounded_bit_for_bit_as_the_reference_says(number, dtype):
    library = library_of(number)
    x = awkward_inputs(torch.Generator().manual_seed(0)).to(dtype)
    codes = torch.zeros(16, 128, dtype=torch.uint8)
    weight = pack_codes(codes, GroupNumbers(torch.ones(16, 2)), bits=4)
    values = torch.empty(64, 128, dtype=torch.int8)
    scales, sums = torch.empty(64, 4), torch.empty(64, 4)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, values, scales, sums)]
    kind = 1 if dtype == torch.float32 else 3
    library.handle.llmopt_prepare(
        library.instruction_set, weight.address, pointers[0], kind, 64, *pointers[1:]
    )
    expected, expected_scales = quantize_steps(x, weight.struct.step)
    assert torch.equal(values, expected)
    assert torch.equal(scales, expected_scales)
    totals = expected.view(64, 4, 32).sum(2)
    assert torch.equal(sums, expected_scales * totals)


@pytest.mark.parametrize("number", EVERY_SET)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_input_that_is_not_finite_spoils_its_own_token_only(number, bad):
    library = library_of(number)
    codes = torch.full((20, 64), 9, dtype=torch.uint8)
    weight = pack_codes(codes, GroupNumbers(torch.ones(20, 2)), bits=4, zeros=8)
    x = torch.ones(3, 64)
    x[1, 40] = bad
    out = multiply(library, weight, x, 1)
    assert out[1].isnan().all()
    assert (out[[0, 2]] == 64).all()


def test_the_number_of_threads_and_of_tokens_changes_no_bit():
    library = libraries()[-1]
    generator = torch.Generator().manual_seed(2)
    codes = small(generator, 0, 16, 100, 256)
    weight = pack_codes(
        codes, GroupNumbers(numbers(generator, 100, 4, dtype=torch.bfloat16)), bits=4, zeros=8
    )
    x = torch.randn(23, 256, generator=generator)
    alone = torch.cat([multiply(library, weight, row.unsqueeze(0), 1) for row in x])
    for threads in (1, 2, 5):
        assert torch.equal(multiply(library, weight, x, threads), alone)


def test_many_tokens_are_computed_in_chunks():
    library = libraries()[-1]
    generator = torch.Generator().manual_seed(3)
    codes = small(generator, 0, 16, 18, 16384)
    scales = numbers(generator, 18, 128, dtype=torch.float32)
    weight = pack_codes(codes, GroupNumbers(scales), bits=4, zeros=8)
    x = torch.randn(61, 16384, generator=generator)  # more than the cache is to hold
    dense = (codes.float() - 8) * per_column(scales, 16384)
    assert_matches_reference(multiply(library, weight, x, 2), x, weight, dense)


@pytest.mark.parametrize("number", EVERY_SET)
def test_bfloat16_inputs_and_outputs_bias_and_order(number):
    library = library_of(number)
    generator = torch.Generator().manual_seed(4)
    codes, order = small(generator, 0, 256, 37, 96), torch.randperm(96, generator=generator)
    bias = torch.randn(37, generator=generator)
    weight = pack_codes(
        codes, GroupNumbers(torch.ones(37, 3)), bits=8, zeros=128, order=order, bias=bias
    )
    x = torch.randn(4, 96, generator=generator).to(torch.bfloat16)
    out = multiply(library, weight, x.float(), 1)
    assert torch.equal(multiply(library, weight, x, 1), out.to(torch.bfloat16))
    plain = pack_codes(codes, GroupNumbers(torch.ones(37, 3)), bits=8, zeros=128)
    gathered = multiply(library, plain, x.float()[:, order].contiguous(), 1)
    assert torch.equal(out, gathered + bias)


@pytest.mark.parametrize("number", EVERY_SET)
@pytest.mark.parametrize("rows", [1, 15, 17, 63])
def test_nothing_is_written_beyond_the_outputs(number, rows):
    library = library_of(number)
    weight = pack_codes(
        torch.ones(rows, 64, dtype=torch.uint8), GroupNumbers(torch.ones(rows, 1)), bits=4
    )
    x, out = torch.ones(3, 64), torch.full((3 * rows + 32,), -1.0)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, out)]
    library.handle.llmopt_linear(library.instruction_set, weight.address, *pointers, 1, 3, 1)
    assert (out[: 3 * rows] == 64).all()
    assert (out[3 * rows :] == -1).all()


def test_weight_bytes_are_codes_and_scales_as_stored():
    codes = torch.zeros(32, 128, dtype=torch.uint8)
    scales = GroupNumbers(torch.ones(32, 2, dtype=torch.float16))
    zeros = torch.zeros(32, 2, dtype=torch.uint8)
    assert pack_codes(codes, scales, bits=4, zeros=8).num_bytes == 32 * 64 + 32 * 2 * 2
    assert pack_codes(codes, scales, bits=8, zeros=zeros).num_bytes == 32 * 128 + 32 * 2 * 3
    bias = torch.ones(32)
    assert pack_codes(codes, scales, bits=4, zeros=8, bias=bias).num_bytes == 32 * 64 + 32 * 2 * 2


def test_groups_are_multiples_of_sixteen_or_whole_rows():
    assert all(can_pack_groups(960, size) for size in (16, 32, 48, 64, 960))
    assert can_pack_groups(100, 100)
    assert not can_pack_groups(96, 8)
    assert not can_pack_groups(96, 24)


def test_no_tokens_give_no_outputs():
    weight = pack_codes(
        torch.zeros(16, 32, dtype=torch.uint8), GroupNumbers(torch.ones(16, 1)), bits=4
    )
    assert multiply(libraries()[-1], weight, torch.empty(0, 32), 2).shape == (0, 16)
