"""Many continuations of few contexts as one batch: every context is computed once.

Knows nothing about models or scores. The law it keeps: a continuation sees its own context and
itself, and nothing of its siblings, whatever else is in the batch.

The continuations of one context form a tree. The batch is paged attention with blocks of a single
token: the trunk is a request of its own (the context and the first continuation), and each further
continuation is a request whose block table begins with the context's slots. A layer stores the keys
of all new tokens before it attends, so contexts and continuations share one forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmopt.quality.tasks.encode import TokenPair
from llmopt_kernels.paged_attention import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Tree:
    """A context, and which pairs continue it.

    members: indices of the pairs, at least one
    num_tokens: tokens to compute; the last one of a continuation is only predicted
    """

    context: tuple[int, ...]
    members: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class TreeBatch:
    """The input of one forward pass over T tokens, and the P tokens that it scores.

    rows: int64 [R] the tokens whose logits are needed, each once
    scored_rows: int64 [P] for each scored token, which of the R rows predicts it
    scored_tokens: int64 [P] the token itself
    scored_pairs: int64 [P] the pair it belongs to
    """

    input_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    metadata: AttentionMetadata
    rows: Tensor
    scored_rows: Tensor
    scored_tokens: Tensor
    scored_pairs: Tensor


def plan_trees(pairs: Sequence[TokenPair], max_batch_tokens: int) -> list[list[Tree]]:
    """Group pairs by context and fill batches of at most `max_batch_tokens`, the largest first.

    A tree that is larger makes a batch of its own, however large.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault(pair.context, []).append(index)
    trees = []
    for context, indices in members.items():
        num_new = sum(len(pairs[index].continuation) - 1 for index in indices)
        trees.append(Tree(context, tuple(indices), len(context) + num_new))
    trees.sort(key=lambda tree: -tree.num_tokens)
    batches: list[list[Tree]] = []
    free = 0
    for tree in trees:
        if tree.num_tokens > free:
            batches.append([])
            free = max_batch_tokens
        batches[-1].append(tree)
        free -= tree.num_tokens
    return batches


def build_tree_batch(
    trees: Sequence[Tree], pairs: Sequence[TokenPair], device: torch.device
) -> TreeBatch:
    """Flatten trees into one batch on `device`."""
    draft = _Draft()
    for tree in trees:
        draft.add(tree, pairs)
    scored = torch.tensor(draft.scored, device=device).unbind(dim=1)
    return TreeBatch(
        input_ids=torch.tensor(draft.input_ids, device=device),
        positions=torch.tensor(draft.positions, device=device),
        metadata=_metadata(draft.tables, draft.query_lens, device),
        rows=torch.tensor(draft.rows, device=device),
        scored_rows=scored[0],
        scored_tokens=scored[1],
        scored_pairs=scored[2],
    )


def _metadata(
    tables: Sequence[Sequence[int]], query_lens: Sequence[int], device: torch.device
) -> AttentionMetadata:
    """Blocks of one token; a batch without branches needs no cache and is computed without one."""
    seq_lens = tuple(len(table) for table in tables)
    if seq_lens == tuple(query_lens):
        return AttentionMetadata.dense(query_lens)
    width = max(seq_lens)
    padded = [[*table, *[0] * (width - len(table))] for table in tables]
    return AttentionMetadata(
        query_lens=tuple(query_lens),
        seq_lens=seq_lens,
        slot_mapping=torch.arange(sum(query_lens), device=device),
        block_tables=torch.tensor(padded, dtype=torch.int32, device=device),
        block_size=1,
    )


@dataclass(slots=True)
class _Draft:
    """A batch while it grows; token t of it has slot t."""

    input_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    query_lens: list[int] = field(default_factory=list)
    tables: list[list[int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    scored: list[tuple[int, int, int]] = field(default_factory=list)  # (row, token, pair)

    def add(self, tree: Tree, pairs: Sequence[TokenPair]) -> None:
        """Add the trunk, then a branch for each further continuation of two tokens or more."""
        start, length = len(self.input_ids), len(tree.context)
        context_slots = list(range(start, start + length))
        shared_row = len(self.rows)
        self.rows.append(context_slots[-1])
        for index in tree.members:
            self.scored.append((shared_row, pairs[index].continuation[0], index))
        for number, index in enumerate(tree.members):
            inputs = pairs[index].continuation[:-1]
            first = len(self.input_ids) + (length if number == 0 else 0)
            slots = range(first, first + len(inputs))
            if number == 0:
                self._request([*tree.context, *inputs], 0, [*context_slots, *slots])
            elif inputs:
                self._request(inputs, length, [*context_slots, *slots])
            for slot, token in zip(slots, pairs[index].continuation[1:], strict=True):
                self.scored.append((len(self.rows), token, index))
                self.rows.append(slot)

    def _request(self, ids: Sequence[int], position: int, table: list[int]) -> None:
        self.input_ids += ids
        self.positions += range(position, position + len(ids))
        self.query_lens.append(len(ids))
        self.tables.append(table)
