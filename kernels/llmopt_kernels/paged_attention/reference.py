"""Causal attention over a paged cache (Kwon et al., 2023), one request and one head at a time.

out[i] = softmax(q[i] K^T * scale) V over the positions that token i may see, with grouped-query
heads: query head h reads key/value head h // (H / KH).
"""

import torch

from llmopt_kernels.paged_attention.metadata import AttentionMetadata
from llmopt_kernels.store_kv import KVCache
from llmopt_kernels.store_kv.reference import read_kv_reference


def paged_attention_reference(
    query: torch.Tensor,
    key: KVCache,
    value: KVCache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Attention in float64.

    query: [T, H, D]. With a cache, key and value are the caches [N, S, KH, D], which hold the new
    tokens already; without one they are the new keys and values [T, KH, D]. With a window, a token
    sees itself and the window - 1 positions before it. With a soft cap, scores s become
    cap * tanh(s / cap) before the softmax. A window and sinks of the metadata hide what they hide.
    Returns [T, H, D].
    """
    window = metadata.visible_window(window)
    key, value = read_kv_reference(key), read_kv_reference(value)
    out = torch.empty_like(query)
    start = 0
    for request, (query_len, seq_len) in enumerate(
        zip(metadata.query_lens, metadata.seq_lens, strict=True)
    ):
        rows = slice(start, start + query_len)
        if metadata.block_tables is None:
            keys, values = key[rows], value[rows]
        else:
            num_blocks = -(-seq_len // metadata.block_size)
            blocks = metadata.block_tables[request, :num_blocks].long()
            keys = key[blocks].flatten(0, 1)[:seq_len]
            values = value[blocks].flatten(0, 1)[:seq_len]
        visible = _visible(query_len, len(keys), window, metadata.num_sinks)
        out[rows] = _attend(query[rows], keys, values, visible, scale, soft_cap)
        start += query_len
    return out


def _visible(num_queries: int, num_keys: int, window: int | None, num_sinks: int) -> torch.Tensor:
    """bool [num_queries, num_keys]: the past and itself, within the window or among the sinks."""
    causal = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    if window is None:
        return causal
    near = causal.triu(num_keys - num_queries - window + 1)
    return near | (causal & (torch.arange(num_keys) < num_sinks))


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    num_heads, num_kv_heads = query.shape[1], keys.shape[1]
    hidden = ~visible.to(query.device)
    out = torch.empty_like(query)
    for head in range(num_heads):
        kv_head = head // (num_heads // num_kv_heads)
        scores = query[:, head].double() @ keys[:, kv_head].T * scale
        if soft_cap is not None:
            scores = soft_cap * (scores / soft_cap).tanh()
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out[:, head] = (weights @ values[:, kv_head]).to(out.dtype)
    return out
