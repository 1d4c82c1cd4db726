"""Paged attention from torch's own operations: one gather and one fused call per query length.

Requests with the same number of new tokens (all decodes, or all prefill chunks of one size) are
padded to their longest context and computed together. Decode heads that share keys become rows of
one matrix, so keys are never repeated for grouped-query attention.
"""

import torch
import torch.nn.functional as F

from llmopt_kernels.paged_attention.metadata import AttentionMetadata, QueryGroup


def paged_attention_grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Same signature and result as `paged_attention_reference`."""
    groups = metadata.groups(window, query.device)
    if len(groups) == 1:
        return _attend(query, key, value, groups[0], scale)
    out = torch.empty_like(query)
    for group in groups:
        if group.slots is None:
            out[group.rows] = _attend(
                query[group.rows], key[group.rows], value[group.rows], group, scale
            )
        else:
            out[group.rows] = _attend(query[group.rows], key, value, group, scale)
    return out


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: QueryGroup, scale: float
) -> torch.Tensor:
    """query: [b * n, H, D] of one group; returns the same shape."""
    b, n = group.num_requests, group.query_len
    if group.slots is not None:
        key = key.flatten(0, 1).index_select(0, group.slots)
        value = value.flatten(0, 1).index_select(0, group.slots)
    keys = key.view(b, -1, *key.shape[1:]).transpose(1, 2)  # [b, KH, L, D]
    values = value.view(b, -1, *value.shape[1:]).transpose(1, 2)
    if n == 1:
        return _attend_decode(query, keys, values, group, scale)
    queries = query.view(b, n, *query.shape[1:]).transpose(1, 2)  # [b, H, n, D]
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


def _attend_decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: QueryGroup, scale: float
) -> torch.Tensor:
    """One new token per request. query: [b, H, D]; keys and values: [b, KH, L, D]."""
    num_kv_heads = keys.shape[1]
    queries = query.view(len(query), num_kv_heads, -1, query.shape[-1])  # [b, KH, H / KH, D]
    bias = None if group.bias is None else group.bias.to(query.dtype)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    return out.flatten(1, 2)
