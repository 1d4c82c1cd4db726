"""Triton's stores write, bit for bit, what torch's write."""

import pytest
import torch
from attention_case import Case, empty_cache, to_device
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt_kernels.store_kv import KVCache, cache_tensors, store_keys_values
from llmopt_kernels.store_kv import triton as kernels
from llmopt_kernels.store_kv.reference import store_keys_values_reference
from llmopt_kernels.store_kv.triton import candidates, store_kv_triton

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same_bits(one: KVCache, other: KVCache) -> None:
    for mine, theirs in zip(cache_tensors(one), cache_tensors(other), strict=True):
        assert torch.equal(mine.cpu().view(torch.uint8), theirs.cpu().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["plain", "fp8", "int8"])
@pytest.mark.parametrize(("num_heads", "head_dim", "elements"), [(5, 24, 64), (3, 80, 1024)])
def test_both_are_stored_as_the_reference_stores_them(
    device, dtype, form, num_heads, head_dim, elements
):
    case = Case(dtype=dtype, form=form, num_kv_heads=num_heads, head_dim=head_dim, block_size=4)
    magnitudes = torch.logspace(-6, 4, 6).view(6, 1, 1)  # beyond what FP8 holds, and 0
    qkv = (randn(6, 3 * num_heads, head_dim, seed=0) * magnitudes).to(dtype)
    qkv[2] = 0
    key, value = qkv[:, num_heads : 2 * num_heads], qkv[:, 2 * num_heads :]
    slots = torch.tensor([17, 0, 6, 3, 9, 11])
    expected = [empty_cache(case, 5) for _ in range(2)]
    store_keys_values_reference(*expected, key, value, slots)
    found = [to_device(empty_cache(case, 5), device) for _ in range(2)]
    store_kv_triton(
        *found,
        key.to(device),
        value.to(device),
        slots.to(device),
        config={"ELEMENTS": elements, "num_warps": 4},
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_bits(mine, theirs)


@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_what_is_no_number_stays_none(device, form):
    """The interpreter's maximum keeps a NaN, and the hardware's drops it: a GPU alone can fail."""
    case = Case(dtype=torch.float32, form=form, num_kv_heads=2, head_dim=16, block_size=4)
    key = randn(3, 2, 16, seed=0)
    key[1, 0, 3] = torch.nan
    found = [to_device(empty_cache(case, 2), device) for _ in range(2)]
    store_kv_triton(*found, key.to(device), key.to(device), torch.arange(3, device=device))
    for cache in found:
        *_, last = cache_tensors(cache)
        kept = last.cpu().float().flatten(0, 1)[:3].reshape(3, 2, -1)
        assert kept.isnan().any(-1).tolist() == [[False, False], [True, False], [False, False]]


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(
        st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.5, 1.5, 2.5, -0.5, -2.5, 127.0, 63.5]),
        min_size=8,
        max_size=8,
    ),
    form=st.sampled_from(["fp8", "int8"]),
)
def test_rounding_is_torchs(device, values, form):
    """Ties among them: with 127 the largest, the scale is 1, and halves go to even codes."""
    case = Case(form=form, num_kv_heads=1, head_dim=8, block_size=1)
    new = torch.tensor(values).view(1, 1, 8)
    slots = torch.zeros(1, dtype=torch.int64)
    expected = [empty_cache(case, 1) for _ in range(2)]
    store_keys_values(*expected, new, -new, slots)
    found = [to_device(empty_cache(case, 1), device) for _ in range(2)]
    store_kv_triton(*found, new.to(device), -new.to(device), slots.to(device))
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_bits(mine, theirs)


def test_halves_go_to_even(device):
    case = Case(form="int8", num_kv_heads=1, head_dim=8, block_size=1)
    new = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49]).view(1, 1, 8).to(device)
    caches = [to_device(empty_cache(case, 1), device) for _ in range(2)]
    store_kv_triton(*caches, new, new, torch.zeros(1, dtype=torch.int64, device=device))
    codes, scales = cache_tensors(caches[0])
    assert float(scales) == 1
    assert codes.flatten().tolist() == [127, 0, 2, 2, 0, -2, -2, 3]


def test_scales_are_quotients(device):
    """Of this number's, a product with 1 / 127 would be rounded to another bfloat16."""
    case = Case(form="int8", num_kv_heads=1, head_dim=8, block_size=1)
    new = torch.full((1, 1, 8), 127.49610137939453)
    slots = torch.zeros(1, dtype=torch.int64)
    expected, found = ([empty_cache(case, 1) for _ in range(2)] for _ in range(2))
    store_keys_values_reference(*expected, new, new, slots)
    found = [to_device(cache, device) for cache in found]
    store_kv_triton(*found, new.to(device), new.to(device), slots.to(device))
    assert_same_bits(found[0], expected[0])


def test_tensors_on_a_gpu_are_stored_by_triton(device, monkeypatch):
    calls = []
    monkeypatch.setattr("llmopt_kernels.store_kv.uses_triton", lambda tensor: True)
    monkeypatch.setattr(kernels, "store_kv_triton", lambda *arguments: calls.append(arguments))
    new = torch.zeros(1, 1, 8)
    store_keys_values(new, new, new, new, torch.zeros(1, dtype=torch.int64))
    assert len(calls) == 1
    assert len(calls[0]) == 5


def test_candidates_hold_the_default():
    assert kernels.DEFAULT_CONFIG in candidates("d128")


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["plain", "fp8", "int8"])
def test_real_shapes(device, form):
    case = Case(dtype=torch.bfloat16, form=form, num_kv_heads=8, head_dim=128, block_size=16)
    qkv = randn(2048, 48, 128, seed=1).to(torch.bfloat16)
    slots = torch.randperm(4096, generator=torch.Generator().manual_seed(2))[:2048]
    expected = [empty_cache(case, 256) for _ in range(2)]
    store_keys_values(*expected, qkv[:, 32:40], qkv[:, 40:], slots)
    found = [to_device(empty_cache(case, 256), device) for _ in range(2)]
    qkv = qkv.to(device)
    store_kv_triton(*found, qkv[:, 32:40], qkv[:, 40:], slots.to(device))
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_bits(mine, theirs)
