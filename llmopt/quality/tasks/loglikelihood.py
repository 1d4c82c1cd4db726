"""Log-likelihoods of continuations, token by token, through llmopt's own runtime.

Knows nothing about texts or tasks. The law it keeps: a pair's result depends on the pair and the
model, not on what is computed beside it (to the rounding of the kernels for other batch shapes).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.engine.model_runner import DecoderModel
from llmopt.errors import ModelError
from llmopt.models.decoder import KVTensors
from llmopt.quality.source import rows_per_chunk
from llmopt.quality.tasks.encode import TokenPair, fit_pair
from llmopt.quality.tasks.tree_batch import TreeBatch, build_tree_batch, plan_trees

MAX_BATCH_TOKENS = 2048

OnPair = Callable[[int, int], None]  # (pairs done, pairs in all)


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """What a model gives to one continuation.

    log_prob: of all its tokens after the context, in nats
    is_greedy: whether greedy decoding of the context produces it
    """

    log_prob: float
    is_greedy: bool


def score_pairs(
    model: DecoderModel,
    pairs: Sequence[TokenPair],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    on_pair: OnPair | None = None,
) -> list[LogLikelihood]:
    """Score every pair -> results in the order of the pairs.

    Pairs of the same context share its computation; contexts that are too long are cut from the
    left. Log-softmax in float32, sums in float64. Raises UsageError for a continuation that the
    model cannot read whole, and ModelError where the model gives no numbers.
    """
    fitting = [fit_pair(pair, model.config.max_model_len) for pair in pairs]
    batches = plan_trees(fitting, max_batch_tokens)
    if not batches:
        return []
    num_slots = max(sum(tree.num_tokens for tree in batch) for batch in batches)
    kv_cache = _allocate(model, num_slots)
    log_probs = torch.zeros(len(pairs), dtype=torch.float64)
    num_misses = torch.zeros(len(pairs), dtype=torch.int64)  # tokens that are not the likeliest
    num_done = 0
    for trees in batches:
        batch = build_tree_batch(trees, fitting, model.device)
        token_log_probs, is_top = _score_tokens(model, batch, kv_cache)
        owners = batch.scored_pairs.cpu()
        log_probs.index_add_(0, owners, token_log_probs)
        num_misses.index_add_(0, owners, (~is_top).long())
        num_done += sum(len(tree.members) for tree in trees)
        if on_pair is not None:
            on_pair(num_done, len(pairs))
    return [
        LogLikelihood(log_prob, misses == 0)
        for log_prob, misses in zip(log_probs.tolist(), num_misses.tolist(), strict=True)
    ]


def _allocate(model: DecoderModel, num_slots: int) -> KVTensors:
    """Per layer keys and values [num_slots, 1, KH, D]; no slot is read before it is written."""
    config = model.config
    shape = (num_slots, 1, config.num_kv_heads, config.head_dim)
    empty = functools.partial(torch.empty, shape, dtype=model.dtype, device=model.device)
    return tuple((empty(), empty()) for _ in range(config.num_layers))


@torch.inference_mode()
def _score_tokens(
    model: DecoderModel, batch: TreeBatch, kv_cache: KVTensors
) -> tuple[Tensor, Tensor]:
    """Log-probability, float64 [P], of each scored token and whether it is the likeliest, bool [P].

    Of equally likely tokens the first counts, as in greedy sampling.
    """
    cache = None if batch.metadata.slot_mapping is None else kv_cache
    hidden = model.forward(batch.input_ids, batch.positions, batch.metadata, cache)  # [T, C]
    num_scored = len(batch.scored_tokens)
    log_probs = torch.empty(num_scored, dtype=torch.float64, device=model.device)
    is_top = torch.empty(num_scored, dtype=torch.bool, device=model.device)
    chunk = rows_per_chunk(model.config.vocab_size)
    for start in range(0, len(batch.rows), chunk):
        logits = model.compute_logits(hidden[batch.rows[start : start + chunk]]).float()  # [r, V]
        inside = (batch.scored_rows >= start) & (batch.scored_rows < start + len(logits))
        rows, tokens = batch.scored_rows[inside] - start, batch.scored_tokens[inside]
        log_probs[inside] = logits.log_softmax(dim=1)[rows, tokens].double()
        is_top[inside] = logits.argmax(dim=1)[rows] == tokens
    if not bool(log_probs.isfinite().all()):
        raise ModelError(
            "the model gives log-probabilities that are not finite numbers",
            "Its weights are damaged, or its dtype overflows: try --dtype float32.",
        )
    return log_probs.cpu(), is_top.cpu()
