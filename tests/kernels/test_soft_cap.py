"""Attention with capped scores against its reference, with and without a cache."""

import pytest
import torch

from llmopt_kernels.paged_attention import AttentionMetadata, paged_attention
from llmopt_kernels.paged_attention.reference import paged_attention_reference

BLOCK = 4


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [None, 1, 3, 5])
@pytest.mark.parametrize("query_lens", [[1], [5], [3, 3], [4, 1, 4, 7, 1]])
def test_without_a_cache(query_lens: list[int], window: int | None) -> None:
    metadata = AttentionMetadata.dense(query_lens)
    query = randn(metadata.num_tokens, 4, 8, seed=0)
    key, value = (randn(metadata.num_tokens, 2, 8, seed=s) for s in (1, 2))
    found = paged_attention(query, key, value, metadata, 0.7, window, 1.5)
    expected = paged_attention_reference(query, key, value, metadata, 0.7, window, 1.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 8])
@pytest.mark.parametrize(("query_lens", "contexts"), [([1, 1], [9, 2]), ([1, 3, 6], [9, 0, 5])])
def test_with_a_cache(query_lens: list[int], contexts: list[int], window: int | None) -> None:
    seq_lens = [q + c for q, c in zip(query_lens, contexts, strict=True)]
    width = -(-max(seq_lens) // BLOCK)
    order = torch.randperm(width * len(seq_lens), generator=torch.Generator().manual_seed(0))
    tables = order.view(len(seq_lens), width).int()
    key, value = (randn(len(order), BLOCK, 2, 8, seed=s) for s in (1, 2))
    slots = torch.zeros(sum(query_lens), dtype=torch.int64)
    metadata = AttentionMetadata(tuple(query_lens), tuple(seq_lens), slots, tables, BLOCK)
    query = randn(sum(query_lens), 4, 8, seed=0)
    found = paged_attention(query, key, value, metadata, 0.7, window, 1.5)
    expected = paged_attention_reference(query, key, value, metadata, 0.7, window, 1.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    uncapped = paged_attention_reference(query, key, value, metadata, 0.7, window)
    assert not torch.allclose(found, uncapped, atol=1e-3)


def test_a_high_cap_changes_nothing() -> None:
    metadata = AttentionMetadata.dense([7])
    query, key, value = randn(7, 4, 8, seed=0), randn(7, 2, 8, seed=1), randn(7, 2, 8, seed=2)
    found = paged_attention(query, key, value, metadata, 0.3, None, 1e4)
    expected = paged_attention(query, key, value, metadata, 0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
