"""From logits to one token per row: greedy, or temperature, top-k, top-p, min-p and a seeded draw.

The order of everything that chooses a token, in the engine as in transformers: constraint (tokens
that may not come), logit bias, repetition, frequency and presence penalties (`penalties`), tokens
banned below `min_tokens`; then, for rows that are not greedy, temperature, top-k, top-p, min-p.
vLLM applies min-p before top-k and top-p; all else is alike.

Knows nothing about requests, batches or the engine.
Law: a drawn token depends on the row's logits, seed and position only, never on the other rows, on
torch's global generators or on how often it was drawn before. A GPU draws by the same law: its
token differs from the CPU's only where rounding decides (`llmopt_kernels/sampling/triton.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import EngineError
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.sampling.reference import uniform as uniform
from llmopt_kernels.sampling.row_params import RowParams, pack_row_params

_NUM_TOP_P_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How to choose the token of one row.

    `temperature` 0 is greedy, and nothing but `banned_token_ids` matters then. `position` counts
    the tokens drawn before from the stream of `seed` (0 <= seed < 2**64). Banned tokens are never
    chosen.
    """

    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    position: int
    banned_token_ids: tuple[int, ...] = ()
    min_p: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTokens:
    """Tokens of R rows that may not have been computed yet.

    table: int64 [2, R]: the tokens, and for each row 1, or 0 where its logits are not finite.
    dtype: of the logits.
    """

    table: Tensor
    dtype: torch.dtype

    @property
    def token_ids(self) -> Tensor:
        """int64 [R], where the logits are."""
        return self.table[0]

    def read(self) -> list[int]:
        """Wait for the tokens.

        Raises:
            EngineError: as `sample`.
        """
        token_ids, finite = self.table.tolist()
        if not all(finite):
            raise not_finite(self.dtype)
        return list(token_ids)


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Choose one token per row.

    Logits are divided by the temperature, then top-k, top-p and min-p (Nguyen et al., 2024) are
    applied; tokens tied with the last one kept are kept too. The draw inverts the cumulative
    distribution over the vocabulary, in float64, at `uniform(seed, position)`.

    Args:
        logits: [R, V], any floating dtype; not modified.
        rows: R rows.

    Raises:
        EngineError: logits are not finite numbers, so the model or its dtype is broken.
    """
    assert logits.shape[0] == len(rows), "one row of logits per request"
    if uses_triton(logits):
        return sample_async(logits, rows).read()
    logits = ban(logits, rows)
    best, best_ids = _greatest(logits)
    token_ids: list[int] = best_ids.tolist()
    drawn = [index for index, row in enumerate(rows) if row.temperature > 0]
    if drawn:
        drawn_ids = _draw((logits - best[:, None])[drawn], [rows[index] for index in drawn])
        for index, token_id in zip(drawn, drawn_ids, strict=True):
            token_ids[index] = token_id
    return token_ids


def sample_async(logits: Tensor, rows: Sequence[SamplingRow]) -> DeviceTokens:
    """As `sample`, without waiting for a GPU: logits that are not finite are an error only when the
    tokens are read. On a CPU there is nothing to wait for, and they are an error at once.
    """
    if not uses_triton(logits):
        token_ids = sample(logits, rows)
        table = torch.tensor([token_ids, [1] * len(rows)], dtype=torch.int64, device=logits.device)
        return DeviceTokens(table, logits.dtype)
    from llmopt_kernels.sampling.triton import sample_triton

    params = row_params(rows, pinned=logits.is_cuda).to(logits.device)
    return DeviceTokens(sample_triton(ban(logits, rows), params), logits.dtype)


def row_params(rows: Sequence[SamplingRow], *, pinned: bool) -> RowParams:
    """Rows as the kernels take them, on the host."""
    return pack_row_params(
        [row.temperature for row in rows],
        [row.top_k for row in rows],
        [row.top_p for row in rows],
        [row.min_p for row in rows],
        [row.seed for row in rows],
        [row.position for row in rows],
        pinned=pinned,
    )


def distribution(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The probabilities, float64 [R, V], that `sample` draws each row from; temperatures are > 0.

    Raises:
        EngineError: as `sample`.
    """
    assert all(row.temperature > 0 for row in rows), "a greedy row has no distribution"
    logits = ban(logits, rows)
    probs = _kept_probs(logits - _greatest(logits)[0][:, None], rows).double()
    return probs / probs.sum(dim=-1, keepdim=True)


def _greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest logit of each row and its token, [R] each."""
    best, best_ids = logits.max(dim=-1)  # a NaN wins
    if not bool(torch.isfinite(best).all()):
        raise not_finite(logits.dtype)
    return best, best_ids


def not_finite(dtype: torch.dtype) -> EngineError:
    """What is wrong with logits that are not finite numbers."""
    return EngineError(
        f"the model computed logits that are not finite numbers in {dtype}",
        "Try dtype float32, and check the checkpoint if that does not help.",
    )


def ban(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Logits [R, V] in which the tokens that each row bans are -inf; a GPU is not waited for."""
    banned = [(index, token) for index, row in enumerate(rows) for token in row.banned_token_ids]
    if not banned:
        return logits
    indices = torch.tensor(banned, pin_memory=logits.is_cuda)  # [number of bans, 2]
    places = indices.to(logits.device, non_blocking=True)
    return logits.index_put((places[:, 0], places[:, 1]), logits.new_full((), -torch.inf))


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Draw one token per row; logits [R, V] are relative to the row's greatest."""
    draws = [uniform(row.seed, row.position) for row in rows]
    return invert_cdf(_kept_probs(logits, rows), draws)


def invert_cdf(weights: Tensor, draws: Sequence[float]) -> list[int]:
    """The token of each row at which the cumulative weight passes the draw, a number in [0, 1).

    Args:
        weights: [R, V], at least 0 and not all 0; they need not sum to 1.
        draws: R numbers.
    """
    cdf = weights.double().cumsum(dim=-1)  # [R, V]
    targets = torch.tensor(draws, dtype=torch.float64, device=weights.device) * cdf[:, -1]
    # right=True: the first token whose cumulative mass exceeds the target, so never one of mass 0.
    token_ids: list[int] = torch.searchsorted(cdf, targets[:, None], right=True)[:, 0].tolist()
    return token_ids


def _kept_probs(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """What each row may draw, [R, V], not normalized; logits are relative to the row's greatest."""
    temperatures = torch.tensor([row.temperature for row in rows], device=logits.device)
    scores = _keep_top_k(logits.float() / temperatures[:, None], rows)
    return _keep_min_p(_keep_top_p(torch.softmax(scores, dim=-1), rows), rows)


def _keep_top_k(scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    vocab_size = scores.shape[-1]
    limits = [min(row.top_k or vocab_size, vocab_size) for row in rows]
    limited = [index for index, limit in enumerate(limits) if limit < vocab_size]
    if not limited:
        return scores
    ranked = scores[limited].topk(max(limits[index] for index in limited)).values
    last = torch.tensor([limits[index] - 1 for index in limited], device=scores.device)
    thresholds = ranked.gather(-1, last[:, None])  # [rows limited, 1]
    kept = scores[limited]
    scores = scores.clone()
    scores[limited] = kept.masked_fill(kept < thresholds, -torch.inf)
    return scores


def _keep_top_p(probs: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    limited = [index for index, row in enumerate(rows) if row.top_p < 1]
    if not limited:
        return probs
    masses = torch.tensor(
        [rows[index].top_p for index in limited], dtype=torch.float64, device=probs.device
    )
    kept = probs[limited]
    thresholds = _nucleus_thresholds(kept, masses)
    probs = probs.clone()
    probs[limited] = kept.masked_fill(kept < thresholds, 0.0)
    return probs


def _keep_min_p(probs: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The likeliest token always passes what was before, so its probability needs no new sum."""
    if all(row.min_p == 0 for row in rows):
        return probs
    shares = torch.tensor([row.min_p for row in rows], device=probs.device)[:, None]
    return probs.masked_fill(probs < shares * probs.amax(dim=-1, keepdim=True), 0.0)


def _nucleus_thresholds(probs: Tensor, masses: Tensor) -> Tensor:
    """Probability [R, 1] of the last token of the smallest top set that reaches masses [R].

    A full sort of the vocabulary costs ten times a look at the likeliest tokens, which nearly
    always hold the nucleus; the sums, hence the result, are the same either way.
    """
    vocab_size = probs.shape[-1]
    num_candidates = min(_NUM_TOP_P_CANDIDATES, vocab_size)
    ranked = probs.topk(num_candidates).values  # [R, candidates], descending
    reached = ranked.double().cumsum(dim=-1)
    if num_candidates < vocab_size and bool((reached[:, -1] < masses).any()):
        ranked = probs.sort(dim=-1, descending=True).values
        reached = ranked.double().cumsum(dim=-1)
    last = torch.searchsorted(reached, masses[:, None]).clamp(max=ranked.shape[-1] - 1)
    return ranked.gather(-1, last)
