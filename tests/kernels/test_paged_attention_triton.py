"""Triton's paged attention against the float64 reference: each feature alone, and combined."""

from dataclasses import replace

import pytest
import torch
from attention_case import Case, cu_seqlens, make_call
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from llmopt_kernels.paged_attention import AttentionMetadata, DeviceLengths
from llmopt_kernels.paged_attention import triton as kernels
from llmopt_kernels.paged_attention.aot_cases import AttentionCall
from llmopt_kernels.paged_attention.triton import paged_attention_triton

DECODE = ((1, 70), (1, 33), (1, 0), (1, 15))
VERIFY = ((4, 70), (4, 3), (4, 28))
CHUNKS = ((50, 30), (33, 0))
MIXED = ((1, 40), (1, 0), (38, 20), (4, 30))


def assert_matches_definition(case: Case, device: torch.device, *, tuned: bool = False) -> None:
    call = make_call(case, device)
    out = paged_attention_triton(
        call.query,
        call.key,
        call.value,
        call.metadata,
        case.scale,
        case.window,
        case.soft_cap,
        num_splits=case.num_splits,
        config=None if tuned else case.config,
    )
    assert out.dtype == case.dtype
    # An element is a mean of values of size 1, whose weights are as exact as scores up to 8 are.
    magnitude = 8.0 if case.dtype is torch.float32 else 1.0
    assert_close(out, call.reference(case), dtype=case.dtype, magnitude=magnitude)


@pytest.mark.parametrize("lens", [DECODE, VERIFY, CHUNKS, ((20, 0), (1, 3), (70, 0))], ids=str)
@pytest.mark.parametrize("features", [{}, {"form": "int8", "max_window": 24, "num_sinks": 2}])
def test_batches(device, lens, features):
    assert_matches_definition(Case(lens=lens, num_heads=2, num_kv_heads=1, **features), device)


@pytest.mark.parametrize(
    "features",
    [
        {"window": 20},
        {"window": 3},
        {"max_window": 18, "num_sinks": 5},
        {"max_window": 25, "num_sinks": 3, "window": 21},
        {"soft_cap": 2.0},
        {"form": "fp8"},
        {"form": "int8"},
        {"form": "int8", "soft_cap": 3.0, "max_window": 30, "num_sinks": 2, "num_splits": 2},
    ],
    ids=str,
)
def test_features(device, features):
    assert_matches_definition(Case(lens=MIXED, **features), device)


@pytest.mark.parametrize("num_splits", [1, 2, 5])
@pytest.mark.parametrize("features", [{}, {"max_window": 150, "num_sinks": 20}], ids=str)
def test_splits_of_the_keys(device, num_splits, features):
    """Contexts from none to more than there are splits of the shortest length."""
    lens = ((1, 700), (3, 0), (2, 200), (40, 500))
    case = Case(lens=lens, num_splits=num_splits, num_kv_heads=1, num_heads=2, **features)
    assert_matches_definition(replace(case, block_n=64), device)


@pytest.mark.parametrize("group", [1, 3, 4, 7])
def test_query_heads_that_share_a_key(device, group):
    lens = ((1, 18), (4, 9), (66 // group, 20))
    assert_matches_definition(Case(lens=lens, num_heads=2 * group, num_kv_heads=2), device)


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [
        *((head_dim, torch.bfloat16) for head_dim in (64, 80, 96, 128, 256)),
        (80, torch.float32),
        (256, torch.float32),
    ],
    ids=str,
)
def test_head_dims(device, head_dim, dtype):
    lens = ((1, 30), (36, 20))
    case = Case(lens=lens, head_dim=head_dim, dtype=dtype, num_heads=2, num_kv_heads=1)
    assert_matches_definition(case, device, tuned=True)
    assert_matches_definition(replace(case, form="int8"), device)


@pytest.mark.parametrize(
    ("block_size", "block_n"), [(1, 16), (3, 16), (8, 16), (16, 16), (32, 16), (16, 32)]
)
def test_block_sizes(device, block_size, block_n):
    case = Case(lens=MIXED, block_size=block_size, block_n=block_n, window=45)
    assert_matches_definition(replace(case, num_heads=2, num_kv_heads=1), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["plain", "fp8", "int8"])
def test_half_precision(device, dtype, form):
    case = Case(lens=MIXED, dtype=dtype, form=form, head_dim=32, num_splits=2)
    assert_matches_definition(replace(case, num_heads=2, num_kv_heads=1), device)


@pytest.mark.parametrize("features", [{}, {"window": 12}, {"soft_cap": 2.0}, {"num_splits": 2}])
def test_without_a_cache(device, features):
    case = Case(lens=((5, 0), (70, 0), (1, 0)), form=None, num_heads=3, num_kv_heads=1)
    assert_matches_definition(replace(case, **features), device)


@settings(max_examples=8, deadline=None)
@given(
    lens=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 5, 40]), st.integers(0, 50)), min_size=1, max_size=3
    ),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1)]),
    head_dim=st.sampled_from([8, 16, 24]),
    block_size=st.sampled_from([1, 3, 8, 16]),
    form=st.sampled_from(["plain", "fp8", "int8"]),
    window=st.sampled_from([None, 7, 33]),
    cap=st.sampled_from([(None, 0), (10, 0), (20, 3), (16, 17)]),
    soft_cap=st.sampled_from([None, 1.5]),
    num_splits=st.sampled_from([None, 2, 3]),
    seed=st.integers(0, 99),
)
def test_everything_combined(
    device, lens, heads, head_dim, block_size, form, window, cap, soft_cap, num_splits, seed
):
    case = Case(
        lens=tuple(lens),
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        block_size=block_size,
        form=form,
        window=window,
        max_window=cap[0],
        num_sinks=cap[1],
        soft_cap=soft_cap,
        num_splits=num_splits,
        seed=seed,
    )
    assert_matches_definition(case, device)


def test_blocks_outside_the_window_are_not_read(device):
    """The engine frees them, and their places in the table say 0, where all is NaN here."""
    case = Case(lens=((1, 60), (34, 40), (4, 50)), max_window=20, num_sinks=3)
    call = make_call(case, device)
    tables = call.metadata.block_tables.clone()
    for row, (_, before) in zip(tables, case.lens, strict=True):
        row[1 : (before - 19) // case.block_size] = 0  # the sinks are in the first
    assert not torch.equal(tables, call.metadata.block_tables)
    metadata = replace(call.metadata, block_tables=tables)
    for num_splits in (1, 3):
        out = paged_attention_triton(
            call.query,
            call.key,
            call.value,
            metadata,
            case.scale,
            num_splits=num_splits,
            config=case.config,
        )
        assert_close(out, call.reference(case), magnitude=8)


@pytest.mark.parametrize("query_len", [1, 4])
def test_lengths_that_only_the_device_knows(device, query_len):
    """As a CUDA graph replays: the host has bounds, and rows that pad the batch see nothing."""
    lens = ((query_len, 200), (query_len, 0), (query_len, 61))
    case = Case(lens=lens, block_n=64)
    call = make_call(case, device)
    num_padding, seq_lens = 2, [*call.metadata.seq_lens, 0, 0]
    starts = cu_seqlens([query_len] * len(seq_lens))
    lengths = DeviceLengths(
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(seq_lens, dtype=torch.int32, device=device),
    )
    padding = torch.zeros(num_padding, 500, dtype=torch.int32, device=device)
    tables = torch.zeros(3, 500, dtype=torch.int32, device=device)
    tables[:, : call.metadata.block_tables.shape[1]] = call.metadata.block_tables
    metadata = AttentionMetadata.bounded(
        lengths,
        torch.zeros(5 * query_len, dtype=torch.int64, device=device),
        torch.cat([tables, padding]),
        case.block_size,
        query_len=query_len,
        max_seq_len=700,
    )
    query = torch.cat([call.query, call.query[: num_padding * query_len]])
    out = paged_attention_triton(
        query, call.key, call.value, metadata, case.scale, config=case.config
    )
    assert {launch.num_splits for launch in next(iter(metadata._launches.values()))} == {5}
    assert_close(out[: 3 * query_len], call.reference(case), magnitude=8)
    assert not out[3 * query_len :].any()


def test_layers_have_metadata_of_their_own(device):
    """Two groups of layers, with other blocks and windows, in one batch."""
    cases = [Case(lens=MIXED), Case(lens=MIXED, max_window=9, num_sinks=2, seed=1)]
    calls = [make_call(case, device) for case in cases]
    metadata = replace(calls[0].metadata, per_layer=tuple(call.metadata for call in calls))
    for layer, (case, call) in enumerate(zip(cases, calls, strict=True)):
        out = paged_attention_triton(
            call.query,
            call.key,
            call.value,
            metadata.of_layer(layer),
            case.scale,
            config=case.config,
        )
        assert_close(out, call.reference(case), magnitude=8)


def test_a_launch_reads_no_value_of_a_tensor(monkeypatch):
    """Tensors of the device "meta" have none; so a call can be captured in a CUDA graph."""
    grids = []

    class Recorder:
        def __init__(self, kernel):
            self.names = set(kernel.arg_names)

        def __getitem__(self, grid):
            return lambda **arguments: grids.append((grid, set(arguments) >= self.names))

    monkeypatch.setattr(kernels, "_attend", Recorder(kernels._attend))
    monkeypatch.setattr(kernels, "_merge", Recorder(kernels._merge))
    for batch, seq_len in [(1, 8192), (64, 8192)]:
        call = AttentionCall("decode", batch=batch, seq_len=seq_len)
        out = paged_attention_triton(call.query, call.cache, call.cache, call.metadata, 0.1)
        assert out.shape == (batch, 32, 128)
    # 8 heads on 132 multiprocessors: 33 splits fill two programs each; 64 requests need none.
    assert grids == [((8, 33), True), ((32, 2), True), ((512, 1), True)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["plain", "fp8", "int8"])
@pytest.mark.parametrize(
    "lens",
    [((1, 8191),), tuple((1, 300 * i) for i in range(16)), ((4, 4000),) * 4, ((2048, 6000),)],
    ids=len,
)
@pytest.mark.parametrize("window", [None, 1024])
def test_real_shapes(device, dtype, form, lens, window):
    case = Case(
        lens=lens,
        dtype=dtype,
        form=form,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        block_size=16,
        window=window,
    )
    assert_matches_definition(case, device, tuned=True)
