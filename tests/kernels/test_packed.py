"""The layout of packed weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt_kernels.matmul.configs import ShapeClass, candidates, default_config
from llmopt_kernels.matmul.packed import BLOCK, can_pack, dequantize, pack, unpack_codes


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 140),
    groups=st.integers(1, 6),
    group_size=st.sampled_from([16, 32, 48, 64, 128]),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 99),
)
def test_codes_survive(rows, groups, group_size, bits, seed):
    codes = random_codes(rows, groups * group_size, bits, seed)
    packed = pack(codes, torch.ones(rows, groups), bits=bits, dtype=torch.bfloat16)
    assert torch.equal(unpack_codes(packed), codes)
    padded = [-(-size // BLOCK) * BLOCK for size in codes.shape]
    assert packed.words.nbytes == padded[0] * padded[1] * bits // 8
    assert packed.group_size == group_size


@pytest.mark.parametrize("bits", [4, 8])
def test_each_code_is_where_the_layout_says(bits):
    for column in range(BLOCK):
        codes = torch.zeros(1, BLOCK, dtype=torch.uint8)
        codes[0, column] = 9
        words = pack(codes, torch.ones(1, 1), bits=bits, dtype=torch.bfloat16).words[0]
        q, p, h = column % 8 // 2, column % 2, column // 8 % 2
        if bits == 4:
            word, place = 4 * q + column // 32, 4 * p + 2 * (column // 16 % 2) + h
        else:
            word, place = 8 * q + column // 16, 2 * h + p
        expected = torch.zeros_like(words)
        expected[word] = (9 << (bits * place)) - ((1 << 32) if 9 << (bits * place) >> 31 else 0)
        assert torch.equal(words, expected), column


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_kept_exactly(dtype):
    codes = random_codes(8, 64, 4)
    coarse = torch.full((8, 2), 0.25)
    fine = coarse + 2**-20
    for scales, kept in ((coarse, dtype), (fine, torch.float32)):
        packed = pack(codes, scales, bits=4, dtype=dtype, zeros=8)
        assert packed.scales.dtype == kept
        expected = (codes.float() - 8) * scales.repeat_interleave(32, dim=1)
        assert torch.equal(dequantize(packed), expected)


def test_offsets_zeros_and_tables_mean_what_they_say():
    codes, scales = random_codes(5, 64, 4), torch.rand(5, 2) + 0.5
    zeros, offsets, table = random_codes(5, 2, 4, seed=1), torch.randn(5, 2), torch.randn(16)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.float().repeat_interleave(32, dim=1)

    packed = pack(codes, scales, bits=4, dtype=torch.bfloat16, zeros=zeros, offsets=offsets)
    expected = (codes.float() - spread(zeros)) * spread(scales) + spread(offsets)
    assert torch.equal(dequantize(packed), expected)
    packed = pack(codes, scales, bits=4, dtype=torch.bfloat16, table=table)
    assert torch.equal(dequantize(packed), table[codes.int()] * spread(scales))


def test_groups_that_the_kernels_take():
    assert can_pack(96, 96)
    assert can_pack(72, 72)
    assert can_pack(96, 48)
    assert not can_pack(96, 24)


def test_bytes_count_what_fills_the_weight_up():
    packed = pack(
        random_codes(100, 192, 4),
        torch.ones(100, 3),
        bits=4,
        dtype=torch.bfloat16,
        zeros=random_codes(100, 3, 4),
    )
    assert packed.num_bytes == 128 * 256 // 2 + 3 * 128 * 2 + 3 * 128


@given(tokens=st.integers(1, 20000), rows=st.integers(1, 300_000), columns=st.integers(1, 60_000))
def test_classes_of_shapes_have_names_and_sensible_defaults(tokens, rows, columns):
    shape = ShapeClass.of(8, tokens, rows, columns)
    assert ShapeClass.parse(str(shape)) == shape
    assert str(shape).endswith(shape.of_weight)
    config = default_config(shape, 128)
    assert config["SPLIT_K"] * 128 <= max(shape.num_columns, 128)
    assert 16 <= config["BLOCK_T"] <= 128
    assert ShapeClass.of(8, shape.num_tokens, shape.num_rows, shape.num_columns) == shape


def test_the_default_is_a_candidate():
    for tokens in (1, 33, 500):
        shape = ShapeClass.of(4, tokens, 4096, 14336)
        found = candidates(shape, (128,))
        assert default_config(shape, 128) in found
        assert len({tuple(sorted(config.items())) for config in found}) == len(found)
        assert {config["BLOCK_K"] for config in found} == {128}


def test_candidates_are_no_wider_than_the_tokens_of_their_class():
    shape = ShapeClass.of(4, 12, 4096, 14336)
    assert str(shape) == "t16-o4096-k16384-w4"
    assert all(config["BLOCK_T"] <= 16 for config in candidates(shape, (128,)))
