from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.layer_group import LayerGroup, group_layers


def test_layers_of_one_window_are_one_group_and_what_sees_most_comes_first() -> None:
    groups = group_layers([4, None, 4, 9, None])
    assert groups == (
        LayerGroup((1, 4)),
        LayerGroup((3,), window=9),
        LayerGroup((0, 2), window=4),
    )


def test_a_cap_with_sinks_is_for_layers_that_see_more() -> None:
    groups = group_layers([None, 4, 20], max_window=10, num_sinks=2)
    assert groups == (
        LayerGroup((0, 2), window=10, num_sinks=2),
        LayerGroup((1,), window=4),
    )


@given(
    window=st.integers(1, 20),
    num_sinks=st.integers(0, 6),
    block_size=st.integers(1, 5),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_the_most_held_blocks_are_those_of_the_worst_chunk(
    window: int, num_sinks: int, block_size: int, chunks: list[int]
) -> None:
    """Against a count of the blocks of the positions that each chunk reads or writes."""
    group = LayerGroup((0,), window, num_sinks)
    most, start = 0, 0
    for chunk in chunks:
        end = start + chunk
        seen = {p // block_size for p in range(max(0, start - window + 1), end)}
        seen |= {p // block_size for p in range(min(num_sinks, end))}
        first = group.first_block(max(0, start - 1), block_size)  # of the token before
        kept = set(range(-(-end // block_size)))
        kept -= set(range(group.num_sink_blocks(block_size), first))
        assert seen <= kept
        most = max(most, len(kept))
        start = end
    assert most <= group.max_held_blocks(start, max(chunks), block_size)
    assert group.max_held_blocks(start, max(chunks), block_size) <= -(-start // block_size)


def test_without_a_window_every_block_is_held() -> None:
    assert LayerGroup((0,)).max_held_blocks(17, 4, 4) == 5
    assert LayerGroup((0,)).first_block(1000, 4) == 0
