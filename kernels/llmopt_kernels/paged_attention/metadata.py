"""What attention has to know about a batch, made once per step and passed as an argument.

Tokens of a batch are flattened: request r's new tokens follow those of request r - 1. A request
with `seq_len` tokens in all and `query_len` new ones attends, with its new token i, to the cached
positions 0 .. seq_len - query_len + i. Without a cache (`slot_mapping` is None) every sequence is
new.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class QueryGroup:
    """Requests of one query length, which are computed in one padded call.

    rows:  the flattened tokens of the group, as a slice or int64 [b * n]
    slots: int64 [b * L] cache slots of each request's first L positions, or None without a cache
    bias:  [b, 1, n, L] 0 where visible and -inf elsewhere, or None if everything is visible
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

    @classmethod
    def dense(cls, query_lens: Sequence[int]) -> "AttentionMetadata":
        """Whole sequences side by side without a cache, each causal within itself."""
        lens = tuple(query_lens)
        return cls(lens, lens, slot_mapping=None, block_tables=None, block_size=1)

    @property
    def num_tokens(self) -> int:
        """T: new tokens in the batch."""
        return sum(self.query_lens)

    @cached_property
    def groups(self) -> tuple[QueryGroup, ...]:
        """The batch by query length; made at the first layer, used by all."""
        members: dict[int, list[int]] = {}
        for request, query_len in enumerate(self.query_lens):
            members.setdefault(query_len, []).append(request)
        return tuple(self._group(n, requests) for n, requests in members.items())

    def _group(self, query_len: int, requests: list[int]) -> QueryGroup:
        slots = bias = None
        if self.block_tables is not None:
            slots = self._slots(requests)
            bias = self._bias(query_len, requests)
        return QueryGroup(len(requests), query_len, self._rows(query_len, requests), slots, bias)

    def _rows(self, query_len: int, requests: list[int]) -> slice | torch.Tensor:
        starts = [0]
        for n in self.query_lens:
            starts.append(starts[-1] + n)
        first, last = requests[0], requests[-1]
        if last - first + 1 == len(requests):
            return slice(starts[first], starts[last + 1])
        device = None if self.block_tables is None else self.block_tables.device
        begins = torch.tensor([starts[r] for r in requests], device=device)
        return (begins[:, None] + torch.arange(query_len, device=device)).flatten()

    def _slots(self, requests: list[int]) -> torch.Tensor:
        assert self.block_tables is not None, "slots exist only with a cache"
        length = max(self.seq_lens[r] for r in requests)
        tables = self.block_tables
        if len(requests) < len(self.query_lens):
            tables = tables[requests]
        num_blocks = -(-length // self.block_size)
        offsets = torch.arange(self.block_size, device=tables.device)
        slots = tables[:, :num_blocks, None].long() * self.block_size + offsets
        return slots.flatten(1)[:, :length].flatten()

    def _bias(self, query_len: int, requests: list[int]) -> torch.Tensor | None:
        lens = [self.seq_lens[r] for r in requests]
        longest = max(lens)
        if query_len == 1 and min(lens) == longest:
            return None
        assert self.block_tables is not None, "a bias is needed only with a cache"
        device = self.block_tables.device
        last_visible = torch.tensor(lens, device=device)[:, None, None, None] - query_len
        last_visible = last_visible + torch.arange(query_len, device=device)[:, None]
        hidden = torch.arange(longest, device=device) > last_visible  # [b, 1, n, L]
        return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))
