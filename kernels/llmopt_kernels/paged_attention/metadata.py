"""What attention has to know about a batch, made once per step and passed as an argument.

Tokens of a batch are flattened: request r's new tokens follow those of request r - 1. A request
with `seq_len` tokens in all and `query_len` new ones attends, with its new token i at position
p = seq_len - query_len + i, to the cached positions 0 .. p or, in a layer with a window, to
p - window + 1 .. p. Without a cache (`slot_mapping` is None) every sequence is new.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class QueryGroup:
    """Requests of one query length, which are computed in one padded call.

    rows:  the flattened tokens of the group, as a slice or int64 [b * n]
    slots: int64 [b * L] cache slots of the L positions that each request's new tokens can need, or
           None without a cache
    bias:  [b, 1, n, L] 0 where visible and -inf elsewhere; None where all L positions are visible
           or, without a cache and a window, where only the future is hidden
    """

    num_requests: int
    query_len: int
    rows: slice | torch.Tensor
    slots: torch.Tensor | None
    bias: torch.Tensor | None


@dataclass(frozen=True)
class AttentionMetadata:
    """The batch as attention sees it.

    query_lens:   [B] new tokens of each request
    seq_lens:     [B] tokens of each request that are in the cache after this step
    slot_mapping: int64 [T] cache slot of each new token; None: no cache
    block_tables: int32 [B, max_blocks], padded with 0; None: no cache
    """

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    slot_mapping: torch.Tensor | None
    block_tables: torch.Tensor | None
    block_size: int
    _groups: dict[int | None, tuple[QueryGroup, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def dense(cls, query_lens: Sequence[int]) -> "AttentionMetadata":
        """Whole sequences side by side without a cache, each causal within itself."""
        lens = tuple(query_lens)
        return cls(lens, lens, slot_mapping=None, block_tables=None, block_size=1)

    @property
    def num_tokens(self) -> int:
        """T: new tokens in the batch."""
        return sum(self.query_lens)

    def groups(self, window: int | None, device: torch.device) -> tuple[QueryGroup, ...]:
        """The batch by query length, for layers with this window (None: they see everything).

        Made at the first such layer and used by all; `device` is the model's.
        """
        if window is not None and window >= max(self.seq_lens):
            window = None
        if window not in self._groups:
            members: dict[int, list[int]] = {}
            for request, query_len in enumerate(self.query_lens):
                members.setdefault(query_len, []).append(request)
            self._groups[window] = tuple(
                self._group(n, requests, window, device) for n, requests in members.items()
            )
        return self._groups[window]

    def _group(
        self, query_len: int, requests: list[int], window: int | None, device: torch.device
    ) -> QueryGroup:
        rows = self._rows(query_len, requests, device)
        if self.block_tables is None:
            bias = None
            if window is not None and window < query_len:
                positions = torch.arange(query_len, device=device)[None]
                bias = _bias(positions, positions, window)
            return QueryGroup(len(requests), query_len, rows, None, bias)
        lens = [self.seq_lens[r] for r in requests]
        length = max(lens)
        if window is not None:
            length = min(length, window + query_len - 1)
        ends = torch.tensor(lens, device=device)[:, None]
        positions = (ends - length).clamp(min=0) + torch.arange(length, device=device)  # [b, L]
        bias = None
        if query_len > 1 or min(lens) < length:
            queries = ends - query_len + torch.arange(query_len, device=device)  # [b, n]
            bias = _bias(queries, positions, window)
        return QueryGroup(
            len(requests), query_len, rows, self._slots(requests, positions).flatten(), bias
        )

    def _rows(
        self, query_len: int, requests: list[int], device: torch.device
    ) -> slice | torch.Tensor:
        starts = [0]
        for n in self.query_lens:
            starts.append(starts[-1] + n)
        first, last = requests[0], requests[-1]
        if last - first + 1 == len(requests):
            return slice(starts[first], starts[last + 1])
        begins = torch.tensor([starts[r] for r in requests], device=device)
        return (begins[:, None] + torch.arange(query_len, device=device)).flatten()

    def _slots(self, requests: list[int], positions: torch.Tensor) -> torch.Tensor:
        """The cache slots of positions [b, L] of these requests."""
        assert self.block_tables is not None, "slots exist only with a cache"
        tables = self.block_tables
        if len(requests) < len(self.query_lens):
            tables = tables[requests]
        blocks = tables.long().gather(1, positions // self.block_size)
        return blocks * self.block_size + positions % self.block_size


def _bias(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """[b, 1, n, L] of what the positions `queries` [b, n] may see of the positions `keys` [b, L]:
    0 where visible, -inf elsewhere.
    """
    distance = queries[:, :, None] - keys[:, None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    bias = torch.zeros(hidden.shape, device=hidden.device)
    return bias.masked_fill_(hidden, float("-inf")).unsqueeze(1)
