"""Causal attention over a paged cache: the version for the device at hand."""

import torch

from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.paged_attention.grouped import paged_attention_grouped
from llmopt_kernels.paged_attention.metadata import AttentionMetadata, DeviceLengths
from llmopt_kernels.store_kv import KVCache


def paged_attention(
    query: torch.Tensor,
    key: KVCache,
    value: KVCache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Same signature and result as `paged_attention_reference`."""
    if uses_triton(query):
        from llmopt_kernels.paged_attention.triton import paged_attention_triton

        return paged_attention_triton(query, key, value, metadata, scale, window, soft_cap)
    return paged_attention_grouped(query, key, value, metadata, scale, window, soft_cap)


__all__ = ["AttentionMetadata", "DeviceLengths", "paged_attention"]
