"""What attention has to know about a batch, made once per step and passed as an argument.

Tokens of a batch are flattened: request r's new tokens follow those of request r - 1. A request
with `seq_len` tokens in all and `query_len` new ones attends, with its new token i at position
p = seq_len - query_len + i, to the cached positions 0 .. p or, in a layer with a window, to
p - window + 1 .. p. Without a cache (`slot_mapping` is None) every sequence is new.

Layers whose blocks live apart (those with a window free blocks that others keep) have slots and
block tables of their own: `of_layer`. A cache that is capped at attention sinks and a window
(Xiao et al., 2023) shows the first `num_sinks` positions besides the window's.

Torch's operations are told the lengths by the host, Triton's kernels read them on the device:
`groups` and `device_lengths` are each made when they are first asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from llmopt_kernels.paged_attention.launch import AttentionShape, Launch, plan_launches


@dataclass(frozen=True, slots=True)
class DeviceLengths:
    """The lengths of a batch where kernels read them.

    cu_seqlens_q: int32 [B + 1], first new token of each request among all, and their number
    seq_lens:     int32 [B], tokens of each request with this step's; 0: a row that only pads
    """

    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor


@dataclass(frozen=True)
class QueryGroup:
    """Requests of one query length, which are computed in one padded call.

    rows:  the flattened tokens of the group, as a slice or int64 [b * n]
    slots: int64 [b * L] cache slots of the L positions that each request's new tokens can need, the
           sinks before the others, or None without a cache
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
    max_window:   the cache keeps no more than this window; None: it keeps what the layers see
    num_sinks:    first positions that stay visible under `max_window`
    per_layer:    the metadata of each layer; empty: this one for all
    lengths:      the lengths on the device, where the caller has put them there
    """

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    slot_mapping: torch.Tensor | None
    block_tables: torch.Tensor | None
    block_size: int
    max_window: int | None = None
    num_sinks: int = 0
    per_layer: tuple["AttentionMetadata", ...] = ()
    lengths: DeviceLengths | None = None
    _groups: dict[int | None, tuple[QueryGroup, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _lengths: dict[torch.device, DeviceLengths] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _launches: dict[AttentionShape, tuple[Launch, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def dense(cls, query_lens: Sequence[int]) -> "AttentionMetadata":
        """Whole sequences side by side without a cache, each causal within itself."""
        lens = tuple(query_lens)
        return cls(lens, lens, slot_mapping=None, block_tables=None, block_size=1)

    @classmethod
    def bounded(
        cls,
        lengths: DeviceLengths,
        slot_mapping: torch.Tensor,
        block_tables: torch.Tensor,
        block_size: int,
        *,
        query_len: int,
        max_seq_len: int,
        max_window: int | None = None,
        num_sinks: int = 0,
    ) -> "AttentionMetadata":
        """A batch of which the host knows no more than bounds, as a CUDA graph is captured with.

        Each request has `query_len` new tokens, and `max_seq_len` at most in all; its true length
        is in `lengths`, and may change between replays as slots and block tables may. For Triton's
        kernels only: torch's operations would take the bounds for the lengths.
        """
        num_requests = len(lengths.seq_lens)
        return cls(
            query_lens=(query_len,) * num_requests,
            seq_lens=(max_seq_len,) * num_requests,
            slot_mapping=slot_mapping,
            block_tables=block_tables,
            block_size=block_size,
            max_window=max_window,
            num_sinks=num_sinks,
            lengths=lengths,
        )

    @property
    def num_tokens(self) -> int:
        """T: new tokens in the batch."""
        return sum(self.query_lens)

    def of_layer(self, layer: int) -> "AttentionMetadata":
        """The batch as this layer sees it."""
        return self.per_layer[layer] if self.per_layer else self

    def visible_window(self, window: int | None) -> int | None:
        """The window of a layer that has `window` by itself."""
        if self.max_window is None or window is None:
            return window or self.max_window
        return min(window, self.max_window)

    def device_lengths(self, device: torch.device) -> DeviceLengths:
        """The lengths on the model's `device`; copied there once, and not waited for."""
        if self.lengths is not None:
            return self.lengths
        if device not in self._lengths:
            starts = [0, *accumulate(self.query_lens)]
            self._lengths[device] = DeviceLengths(
                _copy_to_device(starts, device), _copy_to_device(self.seq_lens, device)
            )
        return self._lengths[device]

    def launches(self, shape: AttentionShape) -> tuple[Launch, ...]:
        """How Triton's kernel is launched for layers of this shape; planned at the first one."""
        if shape not in self._launches:
            self._launches[shape] = plan_launches(
                self.query_lens, self.seq_lens, shape, self.num_sinks
            )
        return self._launches[shape]

    def groups(self, window: int | None, device: torch.device) -> tuple[QueryGroup, ...]:
        """The batch by query length, for layers with this window (None: they see everything).

        Made at the first such layer and used by all; `device` is the model's.
        """
        window = self.visible_window(window)
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
        # Sinks that are among the last `length` positions of every request need no place before.
        num_sinks = min(self.num_sinks, max(lens) - length)
        ends = torch.tensor(lens, device=device)[:, None]
        firsts = (ends - length).clamp(min=0)  # [b, 1]
        positions = firsts + torch.arange(length, device=device)  # [b, L]
        bias = None
        if query_len > 1 or min(lens) < length + num_sinks:
            queries = ends - query_len + torch.arange(query_len, device=device)  # [b, n]
            bias = _bias(queries, positions, window, self.num_sinks)
        if num_sinks:
            sinks = torch.arange(num_sinks, device=device).expand(len(lens), -1)
            if bias is not None:
                repeated = torch.zeros(sinks.shape, device=device)
                repeated.masked_fill_(sinks >= firsts, float("-inf"))
                before = repeated[:, None, None].expand(-1, -1, query_len, -1)
                bias = torch.cat([before, bias], dim=-1)
            positions = torch.cat([sinks, positions], dim=-1)
        slots = self._slots(requests, positions).flatten()
        return QueryGroup(len(requests), query_len, rows, slots, bias)

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


def _copy_to_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """int32 on `device`, from pinned memory where the device is a GPU, so that nothing waits."""
    host = torch.tensor(values, dtype=torch.int32, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def _bias(
    queries: torch.Tensor, keys: torch.Tensor, window: int | None, num_sinks: int = 0
) -> torch.Tensor:
    """[b, 1, n, L] of what the positions `queries` [b, n] may see of the positions `keys` [b, L]:
    0 where visible, -inf elsewhere.
    """
    distance = queries[:, :, None] - keys[:, None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= (distance >= window) & (keys >= num_sinks)[:, None, :]
    bias = torch.zeros(hidden.shape, device=hidden.device)
    return bias.masked_fill_(hidden, float("-inf")).unsqueeze(1)
