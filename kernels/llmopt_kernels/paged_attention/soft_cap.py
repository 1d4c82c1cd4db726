"""Attention whose scores are capped, which no fused call of torch computes.

The cap bends scores smoothly into (-cap, cap) before the future is hidden: cap * tanh(score / cap)
(Gemma 2, Google DeepMind, 2024). The whole matrix of scores is made, in float32.
"""

import torch


def capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    cap: float,
) -> torch.Tensor:
    """query: [b, H, n, D]; key and value: [b, KH, L, D]; bias: [b, 1, n, L] 0 or -inf, or None
    where query i sees the keys up to i + L - n. Returns [b, H, n, D].
    """
    b, num_heads, n, head_dim = query.shape
    num_kv_heads, length = key.shape[1], key.shape[2]
    queries = query.reshape(b, num_kv_heads, -1, n, head_dim)  # [b, KH, H / KH, n, D]
    scores = (queries @ key.unsqueeze(2).transpose(3, 4)).float().mul_(scale)
    scores = scores.div_(cap).tanh_().mul_(cap)
    if bias is None:
        hidden = torch.ones(n, length, dtype=torch.bool, device=query.device).triu(length - n + 1)
        scores.masked_fill_(hidden, float("-inf"))
    else:
        scores += bias.unsqueeze(2)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value.unsqueeze(2)).view(b, num_heads, n, head_dim)
