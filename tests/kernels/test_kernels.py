"""Every kernel that runs on a CPU against its reference, at odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt_kernels.gated_activation import gelu_tanh_mul, silu_mul
from llmopt_kernels.gated_activation.reference import (
    gelu_tanh_mul_reference,
    silu_mul_reference,
)
from llmopt_kernels.paged_attention import AttentionMetadata, paged_attention
from llmopt_kernels.paged_attention.reference import paged_attention_reference
from llmopt_kernels.rms_norm import rms_norm
from llmopt_kernels.rms_norm.reference import rms_norm_reference
from llmopt_kernels.rotary import apply_rotary, rotary_tables
from llmopt_kernels.rotary.reference import rotary_reference
from llmopt_kernels.store_kv import store_kv
from llmopt_kernels.store_kv.reference import store_kv_reference
from llmopt_kernels.wna16.reference import wna16_reference
from llmopt_kernels.wna16.torch_cpu import pack_int4, pack_int8, pack_split_int8

# Relative error ||out - reference|| / ||reference|| that each dtype's rounding explains.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
DTYPES = list(TOLERANCE)


def assert_close(out: torch.Tensor, reference: torch.Tensor) -> None:
    assert out.shape == reference.shape
    assert out.dtype == reference.dtype
    error = (out.double() - reference.double()).norm() / reference.double().norm()
    assert error <= TOLERANCE[out.dtype], f"relative error {error:.2e}"


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 123)])
def test_rms_norm(shape, dtype):
    x, weight = randn(*shape, dtype=dtype), randn(shape[1], dtype=dtype, seed=1)
    assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_with_a_gain_of_more_precision_than_its_input(dtype):
    x, gain = randn(5, 3, 64, dtype=dtype), 1 + randn(64, dtype=torch.float32, seed=1)
    assert_close(rms_norm(x, gain, 1e-6), rms_norm_reference(x, gain, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(
    ("kernel", "reference"),
    [(silu_mul, silu_mul_reference), (gelu_tanh_mul, gelu_tanh_mul_reference)],
)
def test_gated_activation(kernel, reference, tokens, dtype):
    x = randn(tokens, 2 * 33, dtype=dtype)
    assert_close(kernel(x), reference(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(dtype):
    x = randn(6, 3, 8, dtype=dtype)
    positions = torch.tensor([0, 1, 2, 100, 5, 3])
    inv_freq = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
    rotated = apply_rotary(x, rotary_tables(positions, inv_freq, dtype))
    assert_close(rotated, rotary_reference(x, positions, inv_freq))


def test_store_kv_writes_its_slots_and_no_other():
    expected = torch.zeros(5, 4, 2, 3)
    cache = expected.clone()
    new, slots = randn(3, 2, 3, dtype=torch.float32), torch.tensor([17, 0, 6])
    store_kv(cache, new, slots)
    store_kv_reference(expected, new, slots)
    assert torch.equal(cache, expected)
    assert (cache.flatten(0, 1).abs().sum((1, 2)) > 0).sum() == 3


def paged_batch(
    query_lens: list[int], context_lens: list[int], block_size: int, kv_heads: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, AttentionMetadata]:
    """Random caches whose unused slots hold large garbage, and tables of shuffled blocks."""
    generator = torch.Generator().manual_seed(seed)
    seq_lens = [c + q for c, q in zip(context_lens, query_lens, strict=True)]
    needed = [-(-n // block_size) for n in seq_lens]
    order = torch.randperm(sum(needed) + 3, generator=generator).tolist()
    tables = torch.zeros(len(needed), max(needed), dtype=torch.int32)
    caches = [torch.full((len(order), block_size, kv_heads, 8), 1e4) for _ in range(2)]
    for row, count in enumerate(needed):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks)
        for position in range(seq_lens[row]):
            block, offset = blocks[position // block_size], position % block_size
            for cache in caches:
                cache[block, offset] = torch.randn(kv_heads, 8, generator=generator)
    slots = torch.zeros(sum(query_lens), dtype=torch.int64)
    metadata = AttentionMetadata(tuple(query_lens), tuple(seq_lens), slots, tables, block_size)
    return caches[0], caches[1], metadata


@settings(max_examples=60, deadline=None)
@given(
    lens=st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 2, 5]), st.integers(0, 20)), min_size=1, max_size=6
    ),
    block_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    window=st.sampled_from([None, 1, 3, 4, 8, 30]),
    seed=st.integers(0, 1000),
)
def test_paged_attention_equals_dense_attention(lens, block_size, heads, window, seed):
    query_lens, context_lens = [q for q, _ in lens], [c for _, c in lens]
    num_heads, kv_heads = heads
    keys, values, metadata = paged_batch(query_lens, context_lens, block_size, kv_heads, seed)
    query = randn(sum(query_lens), num_heads, 8, dtype=torch.float32, seed=seed)
    out = paged_attention(query, keys, values, metadata, 0.3, window)
    assert_close(out, paged_attention_reference(query, keys, values, metadata, 0.3, window))


@pytest.mark.parametrize("window", [None, 1, 3, 4, 5])
@pytest.mark.parametrize("query_lens", [[5], [3, 3], [4, 1, 4, 7, 1]])
def test_dense_attention_keeps_sequences_apart(query_lens, window):
    metadata = AttentionMetadata.dense(query_lens)
    tokens = metadata.num_tokens
    query = randn(tokens, 4, 8, dtype=torch.float32)
    key, value = (randn(tokens, 2, 8, dtype=torch.float32, seed=s) for s in (1, 2))
    out = paged_attention(query, key, value, metadata, 0.3, window)
    assert_close(out, paged_attention_reference(query, key, value, metadata, 0.3, window))


def test_layers_with_different_windows_share_a_batch():
    keys, values, metadata = paged_batch([1, 3], [9, 2], 4, 2, seed=0)
    query = randn(4, 4, 8, dtype=torch.float32)
    for window in (None, 3, 5, None, 3, 100):
        out = paged_attention(query, keys, values, metadata, 0.3, window)
        assert_close(out, paged_attention_reference(query, keys, values, metadata, 0.3, window))


def test_a_window_reads_no_more_positions_than_it_shows():
    _, _, metadata = paged_batch([1, 1], [90, 50], 16, 1, seed=0)
    (group,) = metadata.groups(8, torch.device("cpu"))
    assert group.slots is not None
    assert len(group.slots) == 2 * 8
    assert group.bias is None


def codes_and_scales(bits: int, rows: int, columns: int, groups: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    scales = torch.rand(rows, groups, generator=generator).to(torch.bfloat16).float() + 2**-6
    return codes, scales.to(torch.bfloat16).float()


@pytest.mark.parametrize("tokens", [1, 3, 17])
@pytest.mark.parametrize(("columns", "groups"), [(64, 2), (192, 1), (192, 2), (512, 2), (576, 9)])
def test_int4_matmul(tokens, columns, groups):
    codes, scales = codes_and_scales(4, 48, columns, groups, tokens)
    zeros = torch.randint(0, 16, scales.shape)
    x = randn(tokens, columns, dtype=torch.bfloat16)
    weight = pack_int4(codes, scales, torch.zeros_like(scales))
    eights = torch.full_like(scales, 8)
    assert_close(weight.matmul(x), wna16_reference(x, codes, scales, eights))
    shifted = pack_int4(codes, scales, (8 - zeros) * scales)
    assert_close(shifted.matmul(x), wna16_reference(x, codes, scales, zeros))


@pytest.mark.parametrize("tokens", [1, 5])
def test_int8_matmul_per_channel(tokens):
    codes, scales = codes_and_scales(8, 32, 96, 1, tokens)
    x = randn(tokens, 96, dtype=torch.bfloat16)
    expected = wna16_reference(x, codes, scales, torch.full_like(scales, 128))
    assert_close(pack_int8(codes, scales).matmul(x), expected)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("columns", "groups"), [(64, 2), (576, 9), (96, 1)])
def test_int8_matmul_in_groups_as_two_int4_products(tokens, columns, groups):
    codes, scales = codes_and_scales(8, 32, columns, groups, tokens)
    x = randn(tokens, columns, dtype=torch.bfloat16)
    expected = wna16_reference(x, codes, scales, torch.full_like(scales, 128))
    assert_close(pack_split_int8(codes, scales).matmul(x), expected)
