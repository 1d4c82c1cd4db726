"""Which drafted tokens the target model takes: speculative sampling, for a batch of ragged drafts.

Two ways, and both leave the target's distribution as it is:

* A draft without probabilities is a guess. The target's own token is drawn at each position as if
  there were no draft, and the draft is taken while it guessed that token. So not only the
  distribution but every token is what it would have been without speculation. A guess x is taken
  with probability p(x), which is what rejection sampling does with a draft that is certain.
* A draft that was drawn from probabilities q is taken with probability min(1, p / q), and the first
  one that is not is replaced by a draw from max(0, p - q), normalized (Leviathan, Kalman and
  Matias, 2023; Chen et al., 2023). It is taken with probability 1 - TV(p, q), the most that is
  possible, but which tokens a seed gives then depends on what was drafted.

p and q are what is left after temperature, top-k, top-p and bans.
Knows nothing about requests, proposers or caches.
Law: a request's tokens depend on its logits, draft, seeds and positions only; the draws for
drafting, taking and replacing come from streams of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmopt.layers.sampler import (
    DeviceTokens,
    SamplingRow,
    ban,
    distribution,
    invert_cdf,
    not_finite,
    row_params,
    sample,
    uniform,
)
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.rejection.draft_params import DraftFacts, DraftKind, pack_drafts
from llmopt_kernels.rejection.reference import REPLACE_STREAM, TAKE_STREAM

DRAFT_STREAM = 0x9FB21C651E98DF25


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """Tokens proposed to follow a request's own, one after another.

    probs: [k, V], what each token was drawn from given those before it; None: they are guesses.
    num_taken: how many tokens are taken whatever the target says, to measure speed where the output
        means nothing; None: as many as are right.
    """

    token_ids: tuple[int, ...] = ()
    probs: Tensor | None = None
    num_taken: int | None = None

    def __post_init__(self) -> None:
        assert self.probs is None or len(self.probs) == len(self.token_ids), "a row for each token"

    def __len__(self) -> int:
        return len(self.token_ids)

    def cut(self, num_tokens: int) -> "Draft":
        """The first `num_tokens` tokens."""
        if num_tokens >= len(self):
            return self
        return Draft(
            self.token_ids[:num_tokens],
            None if self.probs is None else self.probs[:num_tokens],
            None if self.num_taken is None else min(self.num_taken, num_tokens),
        )


def verify(
    logits: Tensor, rows: Sequence[SamplingRow], drafts: Sequence[Draft]
) -> list[tuple[int, ...]]:
    """The tokens that each request gets: those of its draft that are taken, and one of the target.

    Args:
        logits: [R, V] of the target; for each request of a draft of k tokens k + 1 rows: after its
            last token, and after each token of the draft.
        rows: R rows, in the same order; positions of a request go up by one.
        drafts: one for each request, empty or not.

    Returns:
        For each request 1 to k + 1 tokens.

    Raises:
        EngineError: logits are not finite numbers.
    """
    assert len(rows) == sum(len(draft) + 1 for draft in drafts), "a row for each token and one more"
    if uses_triton(logits):
        return _verify_on_gpu(logits, rows, drafts)
    plain = sample(logits, rows)
    firsts: list[int] = []
    first = 0
    for draft in drafts:
        firsts.append(first)
        first += len(draft) + 1
    replaced = _reject(logits, rows, drafts, firsts)
    results: list[tuple[int, ...]] = []
    for first, draft in zip(firsts, drafts, strict=True):
        if draft.num_taken is not None:
            num_taken, token_id = draft.num_taken, plain[first + draft.num_taken]
        elif _is_drawn(draft, rows[first]):
            num_taken, token_id = replaced.get(first, (len(draft), plain[first + len(draft)]))
        else:
            num_taken = _count_guessed(draft.token_ids, plain[first : first + len(draft)])
            token_id = plain[first + num_taken]
        results.append((*draft.token_ids[:num_taken], token_id))
    return results


def _verify_on_gpu(
    logits: Tensor, rows: Sequence[SamplingRow], drafts: Sequence[Draft]
) -> list[tuple[int, ...]]:
    """As `verify`, in kernels; waits for the GPU once."""
    from llmopt_kernels.rejection.triton import verify_triton

    facts: list[DraftFacts] = []
    probs: list[Tensor] = []
    first = 0
    for draft in drafts:
        kind = DraftKind.GUESSED
        if draft.num_taken is not None:
            kind = DraftKind.FORCED
        elif draft.probs is not None and _is_drawn(draft, rows[first]):
            kind = DraftKind.DRAWN
            probs.append(draft.probs)
        facts.append(DraftFacts(draft.token_ids, kind, draft.num_taken or 0))
        first += len(draft) + 1
    params = row_params(rows, pinned=logits.is_cuda).to(logits.device)
    packed = pack_drafts(facts, torch.cat(probs) if probs else None, pinned=logits.is_cuda)
    table = verify_triton(ban(logits, rows), params, packed.to(logits.device))
    taken, token_ids, finite = table.tolist()
    if not all(finite):
        raise not_finite(logits.dtype)
    return [
        (*draft.token_ids[:count], token_id)
        for draft, count, token_id in zip(drafts, taken, token_ids, strict=True)
    ]


def draw_drafts(logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], Tensor]:
    """Draw one token of a draft per row. logits [R, V] of the draft model; temperatures are > 0.

    Returns:
        The tokens, and the probabilities [R, V] that they were drawn from: float64, on a GPU
        float32.

    Raises:
        EngineError: logits are not finite numbers.
    """
    if uses_triton(logits):
        return _draw_on_gpu(logits, rows)
    probs = distribution(logits, rows)
    return invert_cdf(probs, [_draw(DRAFT_STREAM, row) for row in rows]), probs


def _draw_on_gpu(logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], Tensor]:
    from llmopt_kernels.sampling.triton import sample_with_probs_triton

    streams = [replace(row, seed=row.seed ^ DRAFT_STREAM) for row in rows]
    params = row_params(streams, pinned=logits.is_cuda).to(logits.device)
    table, probs = sample_with_probs_triton(ban(logits, rows), params)
    return DeviceTokens(table, logits.dtype).read(), probs


def _reject(
    logits: Tensor, rows: Sequence[SamplingRow], drafts: Sequence[Draft], firsts: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """For each drawn draft that is not taken whole, by its first row: how many of its tokens are
    taken, and the token that replaces the next one.
    """
    drawn = [i for i, draft in enumerate(drafts) if _is_drawn(draft, rows[firsts[i]])]
    if not drawn:
        return {}
    indices = [firsts[i] + j for i in drawn for j in range(len(drafts[i]))]
    used = [rows[index] for index in indices]
    target = distribution(logits[indices], used)  # [n, V]
    proposed = torch.cat([probs for i in drawn if (probs := drafts[i].probs) is not None])
    proposed = proposed.to(target)  # [n, V]
    token_ids = [token_id for i in drawn for token_id in drafts[i].token_ids]
    chosen = torch.tensor(token_ids, device=target.device)[:, None]
    draws = torch.tensor([_draw(TAKE_STREAM, row) for row in used], dtype=torch.float64)
    threshold = draws.to(target.device) * proposed.gather(-1, chosen)[:, 0]
    taken = (threshold < target.gather(-1, chosen)[:, 0]).tolist()  # [n]
    refused: dict[int, tuple[int, int]] = {}  # first row -> number taken, index into the n rows
    start = 0
    for i in drawn:
        stop = start + len(drafts[i])
        if not all(taken[start:stop]):
            index = taken.index(False, start, stop)
            refused[firsts[i]] = (index - start, index)
        start = stop
    if not refused:
        return {}
    places = [index for _, index in refused.values()]
    residual = (target[places] - proposed[places]).clamp_(min=0)
    # Rounding can leave nothing where p and q are equal, and then p is what is left.
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, target[places])
    replacements = invert_cdf(residual, [_draw(REPLACE_STREAM, used[i]) for i in places])
    return {
        first: (num_taken, token_id)
        for (first, (num_taken, _)), token_id in zip(refused.items(), replacements, strict=True)
    }


def _is_drawn(draft: Draft, row: SamplingRow) -> bool:
    return draft.probs is not None and draft.num_taken is None and row.temperature > 0


def _count_guessed(guesses: Sequence[int], token_ids: Sequence[int]) -> int:
    for index, (guess, token_id) in enumerate(zip(guesses, token_ids, strict=True)):
        if guess != token_id:
            return index
    return len(guesses)


def _draw(stream: int, row: SamplingRow) -> float:
    return uniform(row.seed ^ stream, row.position)
