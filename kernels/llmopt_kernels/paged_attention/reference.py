"""Causal attention over a paged cache (Kwon et al., 2023), one request and one head at a time.

out[i] = softmax(q[i] K^T * scale) V over the positions that token i may see, with grouped-query
heads: query head h reads key/value head h // (H / KH).
"""

import torch

from llmopt_kernels.paged_attention.metadata import AttentionMetadata


def paged_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention in float64.

    query: [T, H, D]. With a cache, key and value are the caches [N, S, KH, D], which hold the new
    tokens already; without one they are the new keys and values [T, KH, D]. With a window, a token
    sees itself and the window - 1 positions before it. Returns [T, H, D].
    """
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
        out[rows] = _causal_attention(query[rows], keys, values, scale, window)
        start += query_len
    return out


def _causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    num_queries, num_heads, _ = query.shape
    num_keys, num_kv_heads, _ = keys.shape
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
    visible = visible.tril(num_keys - num_queries)
    if window is not None:
        visible = visible.triu(num_keys - num_queries - window + 1)
    out = torch.empty_like(query)
    for head in range(num_heads):
        kv_head = head // (num_heads // num_kv_heads)
        scores = query[:, head].double() @ keys[:, kv_head].double().T * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        out[:, head] = (weights @ values[:, kv_head].double()).to(out.dtype)
    return out
