"""Triton's rotary embedding against float64, and stored in the same launch as by itself."""

import pytest
import torch
from attention_case import Case, empty_cache, to_device
from tolerances import assert_close

from llmopt_kernels.rotary import apply_rotary, rotary_store_kv, rotary_tables
from llmopt_kernels.rotary import triton as kernels
from llmopt_kernels.rotary.reference import (
    rotary_reference,
    rotary_store_kv_reference,
    rotate_by_tables_reference,
)
from llmopt_kernels.rotary.triton import rotary_store_kv_triton, rotary_triton
from llmopt_kernels.store_kv import cache_tensors
from llmopt_kernels.store_kv.reference import store_keys_values_reference

POSITIONS = torch.tensor([0, 1, 7, 100, 4095])
# (head dim, rotated channels)
DIMS = [(16, 16), (64, 64), (80, 80), (80, 32), (24, 8), (96, 48)]


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frequencies(num_rotated: int) -> torch.Tensor:
    return 1 / 10000 ** (torch.arange(0, num_rotated, 2) / num_rotated)


def make_tables(num_rotated: int, dtype: torch.dtype, scale: float = 1.0):
    return rotary_tables(POSITIONS, frequencies(num_rotated), dtype, scale)


def on(device, tensors):
    return tuple(tensor.to(device) for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("head_dim", "num_rotated"), DIMS)
def test_heads_are_rotated(device, dtype, head_dim, num_rotated):
    x = randn(5, 7, head_dim, seed=0).to(dtype)
    tables = make_tables(num_rotated, dtype)
    out = rotary_triton(
        x.to(device)[:, 1:6], on(device, tables), config={"ELEMENTS": 128, "num_warps": 4}
    )
    assert out.dtype == dtype
    expected = rotate_by_tables_reference(x[:, 1:6].double(), tables)
    assert_close(out, expected, num_terms=2)


def test_the_tables_reference_is_the_definition():
    x = randn(5, 3, 24, seed=1).double()
    cos, sin = make_tables(16, torch.float64, scale=1.25)
    expected = rotary_reference(x, POSITIONS, frequencies(16), 1.25)
    torch.testing.assert_close(
        rotate_by_tables_reference(x, (cos, sin)), expected, rtol=1e-3, atol=1e-3
    )
    early = POSITIONS < 10  # angles in float32 are exact enough for more there
    torch.testing.assert_close(
        rotate_by_tables_reference(x, (cos, sin))[early], expected[early], rtol=1e-5, atol=1e-5
    )


def test_heads_may_be_rotated_in_place(device):
    x = randn(5, 4, 80, seed=2).to(device)
    tables = on(device, make_tables(32, torch.float32))
    expected = rotary_triton(x, tables)
    heads = x.clone()
    assert rotary_triton(heads[:, 1:3], tables, out=heads[:, 1:3]).shape == (5, 2, 80)
    assert torch.equal(heads[:, 1:3], expected[:, 1:3])
    assert torch.equal(heads[:, [0, 3]], x[:, [0, 3]])


@pytest.mark.parametrize("form", ["plain", "fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "num_rotated", "num_heads", "num_kv_heads"),
    [(16, 16, 6, 2), (80, 80, 3, 3), (80, 32, 4, 1), (24, 8, 3, 6)],
)
def test_one_launch_is_a_rotation_and_two_stores(
    device, form, dtype, head_dim, num_rotated, num_heads, num_kv_heads
):
    case = Case(dtype=dtype, form=form, num_kv_heads=num_kv_heads, head_dim=head_dim, block_size=4)
    qkv = randn(5, num_heads + 2 * num_kv_heads, head_dim, seed=3).to(dtype).to(device)
    heads, value = qkv[:, : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
    tables, slots = on(device, make_tables(num_rotated, dtype)), torch.tensor([17, 0, 6, 3, 9])
    caches = [to_device(empty_cache(case, 5), device) for _ in range(2)]
    query = rotary_store_kv_triton(
        heads,
        num_heads,
        value,
        tables,
        *caches,
        slots.to(device),
        config={"ELEMENTS": 128, "num_warps": 4},
    )
    rotated = rotary_triton(heads, tables)
    assert torch.equal(query, rotated[:, :num_heads])
    expected = [empty_cache(case, 5) for _ in range(2)]
    store_keys_values_reference(*expected, rotated[:, num_heads:].cpu(), value.cpu(), slots)
    for mine, theirs in zip(caches, expected, strict=True):
        for a, b in zip(cache_tensors(mine), cache_tensors(theirs), strict=True):
            assert torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("num_rotated", [16, 8, None])
@pytest.mark.parametrize("form", ["plain", "int8"])
def test_torchs_composition_is_the_reference(num_rotated, form):
    case = Case(form=form, num_kv_heads=2, head_dim=16, block_size=4)
    tables = None if num_rotated is None else make_tables(num_rotated, torch.float32)
    heads, value = randn(5, 6, 16, seed=4), randn(5, 2, 16, seed=5)
    slots = torch.tensor([17, 0, 6, 3, 9])
    found, expected = ([empty_cache(case, 5) for _ in range(2)] for _ in range(2))
    query = rotary_store_kv(heads, 4, value, tables, *found, slots)
    assert_close(query, rotary_store_kv_reference(heads, 4, value, tables, *expected, slots))
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(cache_tensors(mine), cache_tensors(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_tensors_on_a_gpu_are_rotated_by_triton(monkeypatch):
    monkeypatch.setattr("llmopt_kernels.rotary.uses_triton", lambda tensor: True)
    monkeypatch.setattr(kernels, "rotary_triton", lambda x, tables: "rotated")
    monkeypatch.setattr(kernels, "rotary_store_kv_triton", lambda *arguments: arguments)
    heads, tables = torch.zeros(5, 3, 16), make_tables(16, torch.float32)
    assert apply_rotary(heads, tables) == "rotated"
    cache = torch.zeros(1, 4, 1, 16)
    assert rotary_store_kv(heads, 2, heads[:, :1], tables, cache, cache, POSITIONS)[1] == 2


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["plain", "fp8", "int8"])
def test_real_shapes(device, form):
    case = Case(dtype=torch.bfloat16, form=form, num_kv_heads=8, head_dim=128, block_size=16)
    qkv = randn(2048, 48, 128, seed=1).to(torch.bfloat16).to(device)
    positions = torch.arange(6000, 8048, device=device)
    tables = rotary_tables(positions, frequencies(128).to(device), torch.bfloat16)
    slots = torch.randperm(4096, generator=torch.Generator().manual_seed(2))[:2048]
    caches = [to_device(empty_cache(case, 256), device) for _ in range(2)]
    query = rotary_store_kv_triton(qkv[:, :40], 32, qkv[:, 40:], tables, *caches, slots.to(device))
    reference = rotate_by_tables_reference(qkv[:, :40].double(), tables)
    assert_close(query, reference[:, :32], num_terms=2)
    rotated = rotary_triton(qkv[:, 32:40], tables).cpu()
    expected = [empty_cache(case, 256) for _ in range(2)]
    store_keys_values_reference(*expected, rotated, qkv[:, 40:].cpu(), slots)
    for mine, theirs in zip(caches, expected, strict=True):
        for a, b in zip(cache_tensors(mine), cache_tensors(theirs), strict=True):
            assert torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8))
