"""Log-probabilities of chosen tokens from logits.

Knows nothing about requests.
Law: they are those of the model, before biases, penalties, temperature and truncation (as vLLM's
by default), in float32 whatever the model computes in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmopt.layers.token_logprobs import TokenLogprobs

_MAX_ROWS = 128  # of the vocabulary in float32, at a time


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """How likely each row held its token, and its most likely ones.

    Tokens of equal logits share a rank.

    Args:
        logits: [R, V], any floating dtype.
        token_ids: R tokens.
        num_top: how many of the most likely tokens to report, for each row.
    """
    assert logits.shape[0] == len(token_ids) == len(num_top), "a row for each token"
    found: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _MAX_ROWS):
        part = slice(start, start + _MAX_ROWS)
        found += _of_rows(logits[part], token_ids[part], num_top[part])
    return found


def _of_rows(
    logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    logprobs = torch.log_softmax(logits.float(), dim=-1)  # [R, V]
    chosen = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])  # [R, 1]
    ranks = ((logprobs > chosen).sum(dim=-1) + 1).tolist()
    best = logprobs.topk(min(max(num_top), logprobs.shape[-1]), dim=-1)
    values, indices = best.values.tolist(), best.indices.tolist()
    return [
        TokenLogprobs(token_id, logprob, rank, tuple(zip(ids[:k], tops[:k], strict=True)))
        for token_id, logprob, rank, ids, tops, k in zip(
            token_ids, chosen[:, 0].tolist(), ranks, indices, values, num_top, strict=True
        )
    ]
