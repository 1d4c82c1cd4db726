"""Caches in FP8 and int8, and attention sinks, against their references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt_kernels.paged_attention import AttentionMetadata, paged_attention
from llmopt_kernels.paged_attention.reference import paged_attention_reference
from llmopt_kernels.store_kv import Int8Cache, KVCache, cache_tensors, gather_kv, store_kv
from llmopt_kernels.store_kv.reference import read_kv_reference, store_kv_reference

FORMS = ["float32", "bfloat16", "fp8", "int8"]


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def empty_cache(form: str, num_blocks: int, block_size: int, kv_heads: int, dim: int) -> KVCache:
    shape = (num_blocks, block_size, kv_heads, dim)
    if form == "int8":
        scales = torch.zeros(shape[:-1], dtype=torch.bfloat16)
        return Int8Cache(torch.zeros(shape, dtype=torch.int8), scales)
    dtype = torch.float8_e4m3fn if form == "fp8" else getattr(torch, form)
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_store_equals_its_reference_and_leaves_the_input_alone(form, dtype):
    new = (randn(6, 2, 8) * torch.logspace(-2, 3, 6).view(6, 1, 1)).to(dtype)
    new[2] = 0
    before, slots = new.clone(), torch.tensor([17, 0, 6, 3, 9, 11])
    cache, expected = empty_cache(form, 5, 4, 2, 8), empty_cache(form, 5, 4, 2, 8)
    store_kv(cache, new, slots)
    store_kv_reference(expected, new, slots)
    for mine, theirs in zip(cache_tensors(cache), cache_tensors(expected), strict=True):
        assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
    assert torch.equal(new, before)
    assert int((read_kv_reference(cache).abs().sum((2, 3)) > 0).sum()) == 5  # one row was zeros


@pytest.mark.parametrize(("form", "bound"), [("int8", 1 / 127), ("fp8", 1 / 16)])
def test_what_is_read_is_what_was_stored_to_the_precision_of_the_form(form, bound):
    new = randn(40, 2, 16, scale=3.0)
    cache = empty_cache(form, 10, 4, 2, 16)
    slots = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    store_kv(cache, new, slots)
    read = gather_kv(cache, slots, torch.float32)
    largest = new.abs() if form == "fp8" else new.abs().amax(dim=-1, keepdim=True)
    error = (read - new).abs()
    assert bool((error <= bound * largest + 2**-9).all())
    assert float(error.max()) > 0
    assert torch.allclose(gather_kv(cache, slots, torch.bfloat16).float(), read, rtol=2**-8)


def test_fp8_saturates_and_keeps_the_sign():
    cache = empty_cache("fp8", 1, 1, 1, 2)
    store_kv(cache, torch.tensor([[[1e6, -1e6]]]), torch.tensor([0]))
    assert gather_kv(cache, torch.tensor([0]), torch.float32).flatten().tolist() == [448, -448]


@settings(max_examples=80, deadline=None)
@given(
    lens=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 5]), st.integers(0, 20)), min_size=1, max_size=5
    ),
    block_size=st.sampled_from([1, 3, 4]),
    form=st.sampled_from(FORMS[:1] + FORMS[2:]),
    layer_window=st.sampled_from([None, 3, 9]),
    cap=st.sampled_from([(None, 0), (4, 0), (4, 1), (2, 3), (5, 7)]),
    seed=st.integers(0, 99),
)
def test_attention_equals_its_reference(lens, block_size, form, layer_window, cap, seed):
    """Over caches of each form, capped at a window with sinks or not; unused slots are garbage."""
    query_lens, seq_lens = [q for q, _ in lens], [q + c for q, c in lens]
    needed = [-(-n // block_size) for n in seq_lens]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(needed) + 2, generator=generator).tolist()
    tables = torch.zeros(len(needed), max(needed), dtype=torch.int32)
    slots: list[int] = []
    for row, count in enumerate(needed):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks)
        slots += [
            blocks[p // block_size] * block_size + p % block_size for p in range(seq_lens[row])
        ]
    caches = []
    for number in range(2):
        cache = empty_cache(form, sum(needed) + 2, block_size, 2, 8)
        every = torch.arange((sum(needed) + 2) * block_size)
        store_kv(cache, torch.full((len(every), 2, 8), 400.0), every)
        store_kv(cache, randn(len(slots), 2, 8, seed=seed + number), torch.tensor(slots))
        caches.append(cache)
    metadata = AttentionMetadata(
        tuple(query_lens),
        tuple(seq_lens),
        torch.zeros(sum(query_lens), dtype=torch.int64),
        tables,
        block_size,
        max_window=cap[0],
        num_sinks=cap[1],
    )
    query = randn(sum(query_lens), 4, 8, seed=seed + 2)
    out = paged_attention(query, *caches, metadata, 0.3, layer_window)
    expected = paged_attention_reference(query, *caches, metadata, 0.3, layer_window)
    assert torch.allclose(out, expected, atol=2e-5)


def test_sinks_and_a_window_read_no_more_positions_than_they_show():
    tables = torch.zeros(2, 30, dtype=torch.int32)
    slots = torch.zeros(2, dtype=torch.int64)
    metadata = AttentionMetadata((1, 1), (90, 50), slots, tables, 4, max_window=8, num_sinks=3)
    (group,) = metadata.groups(None, torch.device("cpu"))
    assert group.slots is not None
    assert len(group.slots) == 2 * (8 + 3)
    assert group.bias is None
