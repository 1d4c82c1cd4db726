"""Logits changed by what was already said: repetition, frequency and presence penalties, biases.

Knows nothing about requests or sampling.
Law: the counts of a slot are kept up with its tokens, so that a step costs the vocabulary, never
the length of what was said.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Penalties:
    """What changes the logits of one row.

    `slot` of the counts says what was said before; `more_token_ids` were generated after that.
    Biases are (token id, added logit). Without a slot the penalties are off.
    """

    slot: int | None = None
    more_token_ids: tuple[int, ...] = ()
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    biases: tuple[tuple[int, float], ...] = ()


class TokenCounts:
    """How often each token of the vocabulary occurred, for many sequences, one slot each.

    `in_prompt` [S, V] bool; `in_output` [S, V] int32. The number of slots grows with the need.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self.in_output = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._free: list[int] = []

    @property
    def num_used_slots(self) -> int:
        """Slots that are open."""
        return self.in_prompt.shape[0] - len(self._free)

    def open(self, prompt_token_ids: Sequence[int]) -> int:
        """A slot for a sequence with this prompt and no output yet."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.in_prompt[slot].zero_()
        self.in_output[slot].zero_()
        self.in_prompt[slot, torch.tensor(prompt_token_ids, device=self.in_prompt.device)] = True
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back."""
        assert slot not in self._free, "a slot is closed once"
        self._free.append(slot)

    def add(self, slots: Sequence[int], token_ids: Sequence[int]) -> None:
        """Count generated tokens: token_ids[i] in slots[i]; repeats count as often as they come."""
        if slots:
            _increment(self.in_output, slots, token_ids)

    def _grow(self) -> None:
        old = self.in_prompt.shape[0]
        new = max(4, 2 * old)
        self.in_prompt = torch.cat([self.in_prompt, self.in_prompt.new_zeros(new - old, self._v)])
        self.in_output = torch.cat([self.in_output, self.in_output.new_zeros(new - old, self._v)])
        self._free.extend(range(new - 1, old - 1, -1))

    @property
    def _v(self) -> int:
        return self.in_prompt.shape[1]


def penalize(logits: Tensor, rows: Sequence[Penalties], counts: TokenCounts) -> Tensor:
    """Logits [R, V] with biases added, then the penalties applied; float32 if anything changed.

    The order is that of transformers and vLLM: bias, repetition, frequency, presence. Repetition
    (Keskar et al., 2019) looks at prompt and output, the other two, which are OpenAI's, at the
    output only.

    Args:
        logits: [R, V]; not modified.
        rows: R rows.
    """
    assert logits.shape[0] == len(rows), "one row of logits each"
    biased = [(index, *bias) for index, row in enumerate(rows) for bias in row.biases]
    penalized = [index for index, row in enumerate(rows) if row.slot is not None]
    if not biased and not penalized:
        return logits
    changed = logits.float() if logits.dtype != torch.float32 else logits.clone()
    if biased:
        row_ids, token_ids, values = zip(*biased, strict=True)
        places = torch.tensor([row_ids, token_ids], device=logits.device)
        added = torch.tensor(values, device=logits.device)
        changed.index_put_((places[0], places[1]), added, accumulate=True)
    if penalized:
        used = [rows[index] for index in penalized]
        changed[penalized] = _penalize_rows(changed[penalized], used, counts)
    return changed


def _penalize_rows(logits: Tensor, rows: Sequence[Penalties], counts: TokenCounts) -> Tensor:
    """logits: [R, V] float32; every row has a slot."""
    slots = torch.tensor([row.slot for row in rows], device=logits.device)
    num_said = counts.in_output[slots]  # [R, V]
    more = [(index, token_id) for index, row in enumerate(rows) for token_id in row.more_token_ids]
    if more:
        _increment(num_said, *zip(*more, strict=True))
    if any(row.repetition != 1 for row in rows):
        seen = (num_said > 0) | counts.in_prompt[slots]
        factors = _column([row.repetition for row in rows], logits)
        changed = torch.where(logits > 0, logits / factors, logits * factors)
        logits = torch.where(seen, changed, logits)
    if any(row.frequency for row in rows):
        logits = logits - num_said * _column([row.frequency for row in rows], logits)
    if any(row.presence for row in rows):
        logits = logits - (num_said > 0) * _column([row.presence for row in rows], logits)
    return logits


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _increment(counts: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> None:
    places = torch.tensor([rows, token_ids], device=counts.device)
    ones = torch.ones(len(rows), dtype=counts.dtype, device=counts.device)
    counts.index_put_((places[0], places[1]), ones, accumulate=True)
