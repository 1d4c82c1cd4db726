"""Batches for the compiled forward pass: lengths in, tokens and paged metadata out."""

from dataclasses import dataclass

import torch

from llmopt_kernels.paged_attention import AttentionMetadata


@dataclass(frozen=True)
class BatchCase:
    """Lengths of a batch and how its cache is kept."""

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    block_size: int = 16
    cached: bool = True
    max_window: int | None = None
    num_sinks: int = 0


@dataclass(frozen=True)
class BuiltBatch:
    """token_ids, positions: int64 [T]."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    metadata: AttentionMetadata
    num_blocks: int


def build_batch(case: BatchCase, vocab_size: int) -> BuiltBatch:
    """Random tokens; the requests' blocks lie scattered over the cache."""
    generator = torch.Generator().manual_seed(2)
    starts = [s - q for s, q in zip(case.seq_lens, case.query_lens, strict=True)]
    token_ids = torch.randint(0, vocab_size, (sum(case.query_lens),), generator=generator)
    ranges = [torch.arange(a, b) for a, b in zip(starts, case.seq_lens, strict=True)]
    if not case.cached:
        metadata = AttentionMetadata.dense(case.query_lens)
        return BuiltBatch(token_ids, torch.cat(ranges), metadata, 0)
    counts = [-(-n // case.block_size) for n in case.seq_lens]
    order = torch.randperm(sum(counts), generator=generator).to(torch.int32)
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, blocks in zip(tables, order.split(counts), strict=True):
        row[: len(blocks)] = blocks
    slots = [
        tables[request, positions // case.block_size].long() * case.block_size
        + positions % case.block_size
        for request, positions in enumerate(ranges)
    ]
    metadata = AttentionMetadata(
        query_lens=case.query_lens,
        seq_lens=case.seq_lens,
        slot_mapping=torch.cat(slots),
        block_tables=tables,
        block_size=case.block_size,
        max_window=case.max_window,
        num_sinks=case.num_sinks,
    )
    return BuiltBatch(token_ids, torch.cat(ranges), metadata, sum(counts))
