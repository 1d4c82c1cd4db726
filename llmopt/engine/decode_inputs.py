"""The input of decode steps at fixed addresses, where a recorded CUDA graph reads it.

Rows behind those of a step pad: they have no past (length 0), and write their keys and values into
a block that belongs to nobody.
Knows nothing about models or about graphs.
Law: after `load` the first rows are what `build_batch` makes of the step, and the others pad.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmopt.engine.batch import by_layer, pad_block_tables
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.pending_step import LateTokens
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.engine.staging import copy_into, to_device
from llmopt_kernels.paged_attention import AttentionMetadata, DeviceLengths

_IDS, _POSITIONS, _SLOTS = 0, 1, 2  # rows of `_longs`; slots: one row for each group


class DecodeInputs:
    """Buffers for steps of up to `max_rows` requests of one token each.

    Args:
        padding_blocks: of each group, a block that no request ever gets.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        padding_blocks: Sequence[int],
        *,
        block_size: int,
        max_rows: int,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        self._groups = tuple(groups)
        self._block_size = block_size
        self._padding_slots = [block * block_size for block in padding_blocks]
        self._longs = torch.zeros(
            (_SLOTS + len(groups), max_rows), dtype=torch.int64, device=device
        )
        self._seq_lens = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._starts = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        width = -(-max_model_len // block_size)
        self._tables = [
            torch.zeros((max_rows, width), dtype=torch.int32, device=device) for _ in groups
        ]
        self._fill(np.zeros((_SLOTS, 0), dtype=np.int64), [])

    def load(self, output: SchedulerOutput, late: LateTokens | None) -> None:
        """Overwrite the buffers, in the order of the device's work, with a step of decodes."""
        scheduled, size = output.scheduled, self._block_size
        rows = np.arange(len(scheduled))
        starts = np.array([item.start for item in scheduled], dtype=np.int64)
        ids = [item.request.token_ids[item.start] for item in scheduled]
        slots: list[np.ndarray] = []
        for index, (group, buffer) in enumerate(zip(self._groups, self._tables, strict=True)):
            table = pad_block_tables(scheduled, index, group, size)  # [B, max_blocks]
            slots.append(table[rows, starts // size].astype(np.int64) * size + starts % size)
            buffer[: len(table), : table.shape[1]].copy_(to_device(table, buffer.device))
        self._fill(np.stack([np.array(ids, dtype=np.int64), starts]), slots)
        if late is not None:
            late.put_into(self.input_ids(len(scheduled)))

    def input_ids(self, num_rows: int) -> Tensor:
        """int64 [num_rows]."""
        return self._longs[_IDS, :num_rows]

    def positions(self, num_rows: int) -> Tensor:
        """int64 [num_rows]."""
        return self._longs[_POSITIONS, :num_rows]

    def metadata(self, num_rows: int, max_seq_len: int) -> AttentionMetadata:
        """Of the first rows, for requests of up to `max_seq_len` tokens."""
        lengths = DeviceLengths(self._starts[: num_rows + 1], self._seq_lens[:num_rows])
        by_group = [
            AttentionMetadata.bounded(
                lengths,
                self._longs[_SLOTS + index, :num_rows],
                table[:num_rows],
                self._block_size,
                query_len=1,
                max_seq_len=max_seq_len,
                max_window=group.window,
                num_sinks=group.num_sinks,
            )
            for index, (group, table) in enumerate(zip(self._groups, self._tables, strict=True))
        ]
        return by_layer(by_group, self._groups)

    def _fill(self, ids_and_positions: np.ndarray, slots: Sequence[np.ndarray]) -> None:
        num_rows = ids_and_positions.shape[1]
        longs = np.zeros(self._longs.shape, dtype=np.int64)
        longs[_SLOTS:] = np.array(self._padding_slots)[:, None]
        longs[:_SLOTS, :num_rows] = ids_and_positions
        for row, own in zip(longs[_SLOTS:], slots, strict=False):
            row[:num_rows] = own
        seq_lens = np.zeros(len(self._seq_lens), dtype=np.int32)
        seq_lens[:num_rows] = ids_and_positions[_POSITIONS] + 1
        copy_into(self._longs, longs)
        copy_into(self._seq_lens, seq_lens)
