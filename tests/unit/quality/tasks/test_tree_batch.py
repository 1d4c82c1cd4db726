"""Batches of trees: every token once, in its place, and every scored token behind its row."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmopt.quality.tasks.encode import TokenPair
from llmopt.quality.tasks.tree_batch import build_tree_batch, plan_trees

CPU = torch.device("cpu")
tokens = st.integers(2, 5)
contexts = st.lists(tokens, min_size=1, max_size=4).map(tuple)
pair_lists = st.lists(
    st.builds(TokenPair, contexts, st.lists(tokens, min_size=1, max_size=4).map(tuple)),
    min_size=1,
    max_size=12,
)


@given(pair_lists, st.integers(1, 20))
def test_plan_covers_every_pair_once_within_the_budget(pairs, budget):
    batches = plan_trees(pairs, budget)
    members = [index for batch in batches for tree in batch for index in tree.members]
    assert sorted(members) == list(range(len(pairs)))
    for batch in batches:
        assert len(batch) == 1 or sum(tree.num_tokens for tree in batch) <= budget
        for tree in batch:
            assert {pairs[index].context for index in tree.members} == {tree.context}
    sizes = [tree.num_tokens for batch in batches for tree in batch]
    assert sizes == sorted(sizes, reverse=True)


@given(pair_lists)
def test_each_row_predicts_its_token_from_exactly_what_is_before_it(pairs):
    (trees,) = plan_trees(pairs, 10_000)
    batch = build_tree_batch(trees, pairs, CPU)
    assert len(batch.input_ids) == sum(tree.num_tokens for tree in trees)
    assert len(batch.rows) == len(set(batch.rows.tolist()))
    visible = _visible_tokens(batch)
    scored: dict[int, list[int]] = {index: [] for index in range(len(pairs))}
    columns = (batch.scored_rows, batch.scored_tokens, batch.scored_pairs)
    for row, token, owner in zip(*(column.tolist() for column in columns), strict=True):
        pair = pairs[owner]
        before = pair.context + pair.continuation[: len(scored[owner])]
        assert visible[batch.rows[row].item()] == before
        scored[owner].append(token)
    assert all(tuple(scored[i]) == pair.continuation for i, pair in enumerate(pairs))


def test_a_context_is_computed_once_and_single_tokens_need_nothing_more():
    pairs = [TokenPair((2, 3, 4), (token,)) for token in (5, 6, 7)]
    (trees,) = plan_trees(pairs, 100)
    batch = build_tree_batch(trees, pairs, CPU)
    assert batch.input_ids.tolist() == [2, 3, 4]
    assert batch.rows.tolist() == [2]
    assert batch.metadata.slot_mapping is None


def test_branches_read_the_context_through_their_block_tables():
    pairs = [TokenPair((2, 3), (4, 9)), TokenPair((2, 3), (5, 6, 9))]
    (trees,) = plan_trees(pairs, 100)
    batch = build_tree_batch(trees, pairs, CPU)
    assert batch.input_ids.tolist() == [2, 3, 4, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 2, 3]
    assert batch.metadata.query_lens == (3, 2)
    assert batch.metadata.seq_lens == (3, 4)
    assert batch.metadata.block_tables.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4]]


def _visible_tokens(batch) -> dict[int, tuple[int, ...]]:
    """For each token of the batch, the tokens that it may see, itself last."""
    metadata, ids = batch.metadata, batch.input_ids.tolist()
    visible, start = {}, 0
    for request, (new, length) in enumerate(
        zip(metadata.query_lens, metadata.seq_lens, strict=True)
    ):
        slots = list(range(start, start + new))
        if metadata.block_tables is not None:
            slots = metadata.block_tables[request, :length].tolist()
            assert slots[length - new :] == metadata.slot_mapping[start : start + new].tolist()
        for i in range(new):
            seen = slots[: length - new + i + 1]
            assert batch.positions[start + i] == len(seen) - 1
            visible[start + i] = tuple(ids[slot] for slot in seen)
        start += new
    return visible
