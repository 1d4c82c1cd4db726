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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmopt.errors import EngineError
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.sampling.reference import uniform as uniform
from llmopt_kernels.sampling.row_params import RowParams, pack_row_params

_Floats = npt.NDArray[np.float32]
_Integers = npt.NDArray[np.int64]


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
    for index, row in enumerate(rows):
        if row.temperature > 0:
            token_ids[index] = _draw(logits[index] - best[index], row)
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
    relative = logits - _greatest(logits)[0][:, None]
    kept = np.zeros(logits.shape)
    for own_kept, own, row in zip(kept, relative, rows, strict=True):
        token_ids, weights = _kept(own, row)
        own_kept[token_ids] = weights
    probs = torch.from_numpy(kept).to(logits.device)
    return probs / probs.sum(dim=-1, keepdim=True)


def _greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest logit of each row and its first token, [R] each."""
    # A NaN wins in both; numpy, which knows no bfloat16, takes a sixth of torch's time.
    if logits.device.type == "cpu" and logits.dtype is torch.float32:
        values = logits.numpy(force=True)
        places = values.argmax(-1)
        best = torch.from_numpy(values[np.arange(len(values)), places])
        best_ids = torch.from_numpy(places)
    else:
        best, best_ids = logits.max(dim=-1)
    if not all(map(math.isfinite, best.tolist())):
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


def _draw(logits: Tensor, row: SamplingRow) -> int:
    """Draw a token; logits [V] are relative to the greatest."""
    token_ids, weights = _kept(logits, row)
    cdf = _cumulated(weights)
    # right: the first token whose cumulative mass exceeds the target, so never one of mass 0.
    target = uniform(row.seed, row.position) * cdf[-1]
    return int(token_ids[cdf.searchsorted(target, side="right")])


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


def _kept(logits: Tensor, row: SamplingRow) -> tuple[_Integers, _Floats]:
    """The tokens, ascending, that a row [V] may draw, and their probabilities, not normalized.

    Logits are relative to the greatest. One row after another stays in the processor's caches, and
    nothing as large as a batch has to be allocated.
    """
    scores = logits.float() / row.temperature
    if row.top_k and row.top_k < len(scores):
        least_score = float(np.partition(scores.numpy(force=True), -row.top_k)[-row.top_k])
        scores = torch.where(scores < least_score, -torch.inf, scores)
    probs: _Floats = torch.softmax(scores, dim=-1).numpy(force=True)
    least = _least_of_nucleus(probs, row.top_p) if row.top_p < 1 else 0.0
    if row.min_p > 0:  # the likeliest token always passes top-p
        least = max(least, float(np.float32(row.min_p) * probs.max()))
    if least == 0:
        return np.arange(len(probs)), probs
    token_ids = np.flatnonzero(probs >= least)
    return token_ids, probs[token_ids]


def _least_of_nucleus(probs: _Floats, mass: float) -> float:
    """Probability of the last token of the smallest top set of [V] that reaches `mass`.

    All tokens below (1 - mass) / V together weigh less than what top-p leaves out, so they are not
    sorted (half of that leaves room for rounding): the sums of the others are those of all.
    """
    likely = probs[np.flatnonzero(probs >= (1 - mass) / (2 * len(probs)))]
    for candidates in (likely, probs):
        ranked = np.sort(candidates)[::-1]
        last = int(_cumulated(ranked).searchsorted(mass))
        if last < len(ranked):
            return float(ranked[last])
    return float(ranked[-1])


def _cumulated(values: _Floats) -> npt.NDArray[np.float64]:
    """Cumulative sums in float64: one after another as numpy's, in a fifth of the time."""
    sums: npt.NDArray[np.float64] = torch.from_numpy(values.astype(np.float64)).cumsum(0).numpy()
    return sums
