"""Paged attention from torch's own operations: one gather and one fused call per query length.

Requests with the same number of new tokens (all decodes, or all prefill chunks of one size) are
padded to their longest context and computed together. Decode heads that share keys become rows of
one matrix, so keys are never repeated for grouped-query attention.
"""

import torch
import torch.nn.functional as F

from llmopt_kernels.paged_attention.metadata import AttentionMetadata, QueryGroup
from llmopt_kernels.paged_attention.soft_cap import capped_attention
from llmopt_kernels.store_kv import KVCache, gather_kv


def paged_attention_grouped(
    query: torch.Tensor,
    key: KVCache,
    value: KVCache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Same signature and result as `paged_attention_reference`."""
    groups = metadata.groups(window, query.device)
    if len(groups) == 1:
        return _attend(query, key, value, groups[0], scale, soft_cap)
    out = torch.empty_like(query)
    for group in groups:
        out[group.rows] = _attend(query[group.rows], key, value, group, scale, soft_cap)
    return out


def _attend(
    query: torch.Tensor,
    key: KVCache,
    value: KVCache,
    group: QueryGroup,
    scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """query: [b * n, H, D] of one group; returns the same shape."""
    b, n = group.num_requests, group.query_len
    keys = _rows(key, group, query.dtype).transpose(1, 2)  # [b, KH, L, D]
    values = _rows(value, group, query.dtype).transpose(1, 2)
    if n == 1 and soft_cap is None:
        return _attend_decode(query, keys, values, group, scale)
    queries = query.view(b, n, *query.shape[1:]).transpose(1, 2)  # [b, H, n, D]
    if soft_cap is not None:
        out = capped_attention(queries, keys, values, group.bias, scale, soft_cap)
        return out.transpose(1, 2).flatten(0, 1)
    out = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None if group.bias is None else group.bias.to(query.dtype),
        is_causal=group.bias is None,
        scale=scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1)


def _rows(cache: KVCache, group: QueryGroup, dtype: torch.dtype) -> torch.Tensor:
    """The keys or values that the group can need: [b, L, KH, D]."""
    if group.slots is None:
        assert isinstance(cache, torch.Tensor), "without a cache these are the new ones"
        rows = cache[group.rows]
    else:
        rows = gather_kv(cache, group.slots, dtype)
    return rows.view(group.num_requests, -1, *rows.shape[1:])


def _attend_decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: QueryGroup, scale: float
) -> torch.Tensor:
    """One new token per request. query: [b, H, D]; keys and values: [b, KH, L, D]."""
    num_kv_heads = keys.shape[1]
    queries = query.view(len(query), num_kv_heads, -1, query.shape[-1])  # [b, KH, H / KH, D]
    bias = None if group.bias is None else group.bias.to(query.dtype)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    return out.flatten(1, 2)
