"""From a scheduled step to the tensors that the model takes.

Knows nothing about the model, the cache's tensors or sampling.
Law: a pure function of the scheduled step; requests stay in their scheduled order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt.engine.staging import to_device
from llmopt_kernels.paged_attention import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one step.

    Attributes:
        input_ids: [T] int64; `PENDING_TOKEN` where only the device knows the token.
        positions: [T] int64, of each token in its own sequence.
        metadata: lengths, slots and block tables of the B requests.
        logits_indices: [R] int64, the last known token of each request that samples, and each of
            its draft.
        sampling: those requests, as scheduled.
    """

    input_ids: Tensor
    positions: Tensor
    metadata: AttentionMetadata
    logits_indices: Tensor
    sampling: tuple[ScheduledRequest, ...]


class _Rows(NamedTuple):
    """Requests and positions of the rows, [T] each, and the row after each request's last, [B]."""

    owners: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


def build_batch(
    output: SchedulerOutput,
    block_size: int,
    device: torch.device,
    groups: Sequence[LayerGroup],
) -> Batch:
    """Flatten a scheduled step into a batch on `device` for a model with these layer groups."""
    scheduled = output.scheduled
    query_lens = tuple([item.num_scheduled_tokens for item in scheduled])
    seq_lens = tuple([item.start + item.num_scheduled_tokens for item in scheduled])
    rows = _rows(scheduled, query_lens)
    columns, offsets = np.divmod(rows.positions, block_size)  # [T] each
    by_group: list[AttentionMetadata] = []
    for index, group in enumerate(groups):
        block_tables = pad_block_tables(scheduled, index, group, block_size)  # [B, max_blocks]
        first_slots = np.multiply(block_tables[rows.owners, columns], block_size, dtype=np.int64)
        slots = first_slots + offsets  # [T]
        by_group.append(
            AttentionMetadata(
                query_lens=query_lens,
                seq_lens=seq_lens,
                slot_mapping=to_device(slots, device),
                block_tables=to_device(block_tables, device),
                block_size=block_size,
                max_window=group.window,
                num_sinks=group.num_sinks,
            )
        )
    return Batch(
        input_ids=to_device(np.array(_token_ids(scheduled), dtype=np.int64), device),
        positions=to_device(rows.positions, device),
        metadata=by_layer(by_group, groups),
        logits_indices=to_device(_logits_rows(scheduled, rows.ends), device),
        sampling=tuple([item for item in scheduled if item.samples]),
    )


def _rows(scheduled: tuple[ScheduledRequest, ...], query_lens: tuple[int, ...]) -> _Rows:
    """Which token of which request each row of a step is."""
    starts = np.array([item.start for item in scheduled], dtype=np.int64)  # [B]
    requests = np.arange(len(scheduled))
    if query_lens.count(1) == len(query_lens):  # as nearly always
        return _Rows(requests, starts, requests + 1)
    ends = np.cumsum(query_lens)
    owners = np.repeat(requests, query_lens)
    # Row r of request b, whose first row is f, has position starts[b] + r - f.
    return _Rows(owners, np.arange(len(owners)) + (starts - ends + query_lens)[owners], ends)


def by_layer(
    by_group: Sequence[AttentionMetadata], groups: Sequence[LayerGroup]
) -> AttentionMetadata:
    """The metadata of a step from those of its layer groups."""
    if len(groups) == 1:
        return by_group[0]
    layers = {
        layer: metadata
        for metadata, group in zip(by_group, groups, strict=True)
        for layer in group.layers
    }
    return replace(by_group[0], per_layer=tuple(layers[layer] for layer in sorted(layers)))


def _token_ids(scheduled: tuple[ScheduledRequest, ...]) -> list[int]:
    token_ids: list[int] = []
    for item in scheduled:
        stop = item.start + item.num_known_tokens
        token_ids.extend(item.request.token_ids[item.start : stop])
        token_ids.extend(item.draft_token_ids)
    return token_ids


def _logits_rows(
    scheduled: tuple[ScheduledRequest, ...], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """int64 [R]; ends: [B] the row after each request's last."""
    counts = [len(item.draft_token_ids) + 1 for item in scheduled if item.samples]
    if counts.count(1) == len(scheduled):  # as nearly always
        return ends - 1
    last = ends[[item.samples for item in scheduled]] - 1
    before = np.cumsum(counts, dtype=np.int64)  # rows of a request and of those before it
    return np.arange(sum(counts)) + np.repeat(last - before + 1, counts)


def pad_block_tables(
    scheduled: tuple[ScheduledRequest, ...], index: int, group: LayerGroup, block_size: int
) -> npt.NDArray[np.int32]:
    """int32 [B, max_blocks] of group `index`; 0 behind the table and outside the window."""
    # Freed blocks lie outside the window, and only what lies within is copied.
    tables = [cast(list[int], item.request.block_tables[index]) for item in scheduled]
    padded = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, table, item in zip(padded, tables, scheduled, strict=True):
        if group.window is None:
            row[: len(table)] = table
            continue
        first = group.first_block(item.start, block_size)
        num_sink_blocks = min(first, group.num_sink_blocks(block_size))
        row[:num_sink_blocks] = table[:num_sink_blocks]
        row[first : len(table)] = table[first:]
    return padded
