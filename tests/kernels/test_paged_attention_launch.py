"""Laws of cutting a batch into launches, which need no GPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt_kernels.paged_attention import AttentionMetadata, DeviceLengths
from llmopt_kernels.paged_attention.configs import candidates, default_config, shape_class
from llmopt_kernels.paged_attention.launch import (
    MAX_SPLITS,
    MIN_SPLIT_TOKENS,
    AttentionShape,
    plan_launches,
)


def shape(**changes) -> AttentionShape:
    settings = {"num_kv_heads": 8, "group": 4, "window": None, "large_tile_rows": 128}
    return AttentionShape(**settings | {"num_sms": 132} | changes)


@given(
    lens=st.lists(
        st.tuples(st.integers(1, 200) | st.just(1), st.integers(0, 5000)), min_size=1, max_size=40
    ),
    group=st.sampled_from([1, 3, 4, 7, 71]),
    num_kv_heads=st.integers(1, 32),
    large_tile_rows=st.sampled_from([32, 64, 128]),
    window=st.sampled_from([None, 1, 100]),
)
def test_launches_cover_the_batch_once_and_in_order(
    lens, group, num_kv_heads, large_tile_rows, window
):
    query_lens = [new for new, _ in lens]
    seq_lens = [sum(pair) for pair in lens]
    launches = plan_launches(
        query_lens,
        seq_lens,
        shape(
            group=group,
            num_kv_heads=num_kv_heads,
            large_tile_rows=large_tile_rows,
            window=window,
        ),
        num_sinks=2,
    )
    request = token = 0
    for launch in launches:
        assert (launch.first_request, launch.first_token) == (request, token)
        own = query_lens[request : request + launch.num_requests]
        assert launch.num_tokens == sum(own)
        tile_tokens = launch.tile_rows // group
        assert tile_tokens >= 1
        assert launch.tile_rows in (16, 32, 64, 128)
        needed = sum(-(-n // tile_tokens) for n in own)
        assert needed <= launch.num_tiles <= needed + launch.num_requests
        assert launch.one_tile == (max(own) * group <= 64) or len(launches) == 1
        if launch.one_tile:
            assert launch.num_tiles == launch.num_requests == needed
        assert 1 <= launch.num_splits <= MAX_SPLITS
        longest = max(seq_lens[request : request + launch.num_requests])
        assert launch.num_splits == 1 or longest // launch.num_splits >= MIN_SPLIT_TOKENS
        request += launch.num_requests
        token += launch.num_tokens
    assert (request, token) == (len(lens), sum(query_lens))
    assert len(launches) <= 4


@pytest.mark.parametrize(
    ("batch", "seq_len", "expected"),
    [
        (1, 8192, 33),  # 8 heads * 33 = 264 programs, two for each multiprocessor
        (1, 100, 1),
        (1, 1024, 8),  # no split is shorter than 128 keys
        (4, 8192, 8),
        (33, 8192, 1),
        (64, 8192, 1),
        (1, 10**6, 33),
    ],
)
def test_decodes_are_split_until_they_fill_the_gpu(batch, seq_len, expected):
    (launch,) = plan_launches([1] * batch, [seq_len] * batch, shape(), 0)
    assert launch.num_splits == expected
    assert launch.tile_rows == 16


def test_a_chunk_over_a_long_context_is_split_by_its_tiles():
    (launch,) = plan_launches([128], [8192], shape(), 0)
    assert launch.num_splits == 132 // (8 * 4)  # of 8 heads and 4 tiles of 32 tokens


def test_one_long_request_among_short_ones_is_split():
    (launch,) = plan_launches([1] * 64, [100_000] + [100] * 63, shape(), 0)
    assert launch.num_splits == 264 * 100_000 // (8 * 106_300)


def test_a_window_bounds_what_there_is_to_split():
    (launch,) = plan_launches([1], [100_000], shape(window=512), 4)
    assert launch.num_splits == (512 + 4) // 128


def test_a_chunk_among_decodes_is_launched_by_itself():
    launches = plan_launches([1] * 8 + [512] + [1] * 3, [600] * 12, shape(), 0)
    assert [launch.one_tile for launch in launches] == [True, False, True]
    assert [launch.tile_rows for launch in launches] == [16, 128, 16]
    assert [launch.num_tiles for launch in launches] == [8, 512 // 32 + 1, 3]


def test_a_batch_that_alternates_is_one_launch():
    (launch,) = plan_launches([1, 512] * 3, [600] * 6, shape(), 0)
    assert not launch.one_tile
    assert launch.num_requests == 6


def test_a_given_number_of_splits_is_kept():
    (launch,) = plan_launches([1], [50], shape(num_splits=7), 0)
    assert launch.num_splits == 7


def test_lengths_are_brought_to_the_device_once():
    metadata = AttentionMetadata.dense([3, 1, 4])
    lengths = metadata.device_lengths(torch.device("cpu"))
    assert lengths.cu_seqlens_q.tolist() == [0, 3, 4, 8]
    assert lengths.seq_lens.tolist() == [3, 1, 4]
    assert {lengths.cu_seqlens_q.dtype, lengths.seq_lens.dtype} == {torch.int32}
    assert metadata.device_lengths(torch.device("cpu")) is lengths
    assert metadata.launches(shape()) is metadata.launches(shape())


def test_lengths_of_the_caller_are_taken_as_they_are():
    integers = torch.zeros(3, dtype=torch.int32)
    lengths = DeviceLengths(integers, integers[1:])
    slots, tables = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int32)
    metadata = AttentionMetadata.bounded(lengths, slots, tables, 16, query_len=1, max_seq_len=64)
    assert metadata.device_lengths(torch.device("cpu")) is lengths
    assert (metadata.query_lens, metadata.seq_lens) == ((1, 1), (64, 64))
    assert metadata.num_tokens == 2


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("bits", [(16, 16), (16, 8), (32, 32)])
def test_the_default_is_a_candidate_and_candidates_are_distinct(small, head_dim, bits):
    kind = shape_class(small=small, head_dim=head_dim, query_bits=bits[0], kv_bits=bits[1])
    found = candidates(kind)
    assert default_config(kind) in found
    assert len({tuple(sorted(config.items())) for config in found}) == len(found)
    assert all(("BLOCK_M" in config) != small for config in found)


def test_candidates_fit_in_shared_memory():
    kind = shape_class(small=False, head_dim=256, query_bits=16, kv_bits=16)
    assert {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 4} not in candidates(kind)
