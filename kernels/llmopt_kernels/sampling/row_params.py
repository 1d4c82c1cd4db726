"""How each row of logits is sampled, as one tensor: one copy takes it to the GPU.

Knows no kernel. The law: a field is 8 bytes wide, an integer or the bits of a float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

NUM_FIELDS = 6
_MAX_INT32 = 2**31 - 1
_MIN_TEMPERATURE = 2.0**-100  # colder draws are the same, and float32 holds its reciprocal


@dataclass(frozen=True, slots=True, eq=False)
class RowParams:
    """What the kernels take.

    table: int64 [6, R]: temperature, top_k, top_p, min_p, seed, position of each row. A temperature
        of 0 is greedy; a top_k of at least V and a top_p of 1 are no limits.
    drawn: whether any row is not greedy; a promise of the host, so that kernels can be left out.
    limited: whether any row that is not greedy has a top_k or a top_p; the same.
    """

    table: torch.Tensor
    drawn: bool
    limited: bool

    def to(self, device: torch.device) -> "RowParams":
        """A copy on a device; it does not wait where the table is in pinned memory."""
        return RowParams(self.table.to(device, non_blocking=True), self.drawn, self.limited)


def pack_row_params(
    temperatures: Sequence[float],
    top_ks: Sequence[int | None],
    top_ps: Sequence[float],
    min_ps: Sequence[float],
    seeds: Sequence[int],
    positions: Sequence[int],
    *,
    pinned: bool,
) -> RowParams:
    """Parameters of R rows on the host. Seeds: 0 <= seed < 2**64; top_k None: no limit."""
    table = torch.empty((NUM_FIELDS, len(seeds)), dtype=torch.int64, pin_memory=pinned)
    warm = [t if t == 0 else max(t, _MIN_TEMPERATURE) for t in temperatures]
    for field, values in ((0, warm), (2, top_ps), (3, min_ps)):
        table[field] = torch.tensor(values, dtype=torch.float64).view(torch.int64)
    table[1] = torch.tensor([min(k or _MAX_INT32, _MAX_INT32) for k in top_ks])
    table[4] = torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed in seeds])
    table[5] = torch.tensor(positions)
    rows = zip(temperatures, top_ks, top_ps, strict=True)
    limited = any(t > 0 and (k is not None or p < 1) for t, k, p in rows)
    return RowParams(table, drawn=any(t > 0 for t in temperatures), limited=limited)
