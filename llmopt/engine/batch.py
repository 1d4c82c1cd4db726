"""From a scheduled step to the tensors that the model takes.

Knows nothing about the model, the cache's tensors or sampling.
Law: a pure function of the scheduled step; requests stay in their scheduled order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmopt.engine.request import Request
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt_kernels.paged_attention import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one step.

    Attributes:
        input_ids: [T] int64.
        positions: [T] int64, of each token in its own sequence.
        metadata: lengths, slots and block tables of the B requests.
        logits_indices: [R] int64, the last token of each request that samples.
        sampling_requests: those R requests.
    """

    input_ids: Tensor
    positions: Tensor
    metadata: AttentionMetadata
    logits_indices: Tensor
    sampling_requests: tuple[Request, ...]


def build_batch(output: SchedulerOutput, block_size: int, device: torch.device) -> Batch:
    """Flatten a scheduled step into a batch on `device`."""
    scheduled = output.scheduled
    query_lens = [item.num_scheduled_tokens for item in scheduled]
    starts = np.array([item.start for item in scheduled], dtype=np.int64)  # [B]
    ends = np.cumsum(query_lens)  # [B] row after each request's last
    first_rows = ends - query_lens
    # Row r of request b has position starts[b] + r - first_rows[b].
    owners = np.repeat(np.arange(len(scheduled)), query_lens)  # [T]
    positions = np.arange(len(owners)) + (starts - first_rows)[owners]  # [T]
    block_tables = _pad_block_tables(scheduled)  # [B, max_blocks]
    blocks = block_tables[owners, positions // block_size].astype(np.int64)
    slots = blocks * block_size + positions % block_size  # [T]
    return Batch(
        input_ids=torch.tensor(_token_ids(scheduled), dtype=torch.int64, device=device),
        positions=torch.from_numpy(positions).to(device),
        metadata=AttentionMetadata(
            query_lens=tuple(query_lens),
            seq_lens=tuple(item.start + item.num_scheduled_tokens for item in scheduled),
            slot_mapping=torch.from_numpy(slots).to(device),
            block_tables=torch.from_numpy(block_tables).to(device),
            block_size=block_size,
        ),
        logits_indices=torch.from_numpy(ends[[item.samples for item in scheduled]] - 1).to(device),
        sampling_requests=tuple(item.request for item in scheduled if item.samples),
    )


def _token_ids(scheduled: tuple[ScheduledRequest, ...]) -> list[int]:
    token_ids: list[int] = []
    for item in scheduled:
        stop = item.start + item.num_scheduled_tokens
        token_ids.extend(item.request.token_ids[item.start : stop])
    return token_ids


def _pad_block_tables(scheduled: tuple[ScheduledRequest, ...]) -> npt.NDArray[np.int32]:
    """int32 [B, max_blocks], rows padded with 0."""
    tables = [item.request.block_table for item in scheduled]
    padded = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return padded
