import pytest

from llmopt.engine.block_pool import BlockPool


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(3)
    assert pool.allocate(4) is None
    assert pool.num_free_blocks == 3
    assert pool.allocate(0) == []
    block_ids = pool.allocate(3)
    assert block_ids is not None
    assert sorted(block_ids) == [0, 1, 2]
    assert (pool.num_free_blocks, pool.num_used_blocks) == (0, 3)
    assert pool.allocate(1) is None


def test_the_block_freed_last_is_reused_first() -> None:
    pool = BlockPool(8)
    block_ids = pool.allocate(4)
    assert block_ids is not None
    pool.free([block_ids[1]])
    assert pool.allocate(1) == [block_ids[1]]


def test_a_shared_block_is_free_after_its_last_holder_left() -> None:
    pool = BlockPool(2)
    block_ids = pool.allocate(1)
    assert block_ids is not None
    pool.ref(block_ids)
    pool.free(block_ids)
    assert pool.ref_count(block_ids[0]) == 1
    assert pool.num_used_blocks == 1
    pool.free(block_ids)
    assert pool.num_used_blocks == 0
    pool.check_invariants()


def test_freeing_or_sharing_a_free_block_breaks_the_law() -> None:
    pool = BlockPool(1)
    with pytest.raises(AssertionError, match="freed once per holder"):
        pool.free([0])
    with pytest.raises(AssertionError, match="held block or an idle one"):
        pool.ref([0])


def test_check_invariants_sees_a_block_that_is_lost() -> None:
    pool = BlockPool(2)
    pool._free.pop()
    with pytest.raises(AssertionError, match="without holders"):
        pool.check_invariants()


def test_a_kept_block_stays_until_its_place_is_needed_and_the_oldest_goes_first() -> None:
    evicted: list[int] = []
    pool = BlockPool(3, evicted.append)
    block_ids = pool.allocate(3)
    assert block_ids is not None
    for block_id in block_ids:
        pool.keep(block_id)
    pool.free(reversed(block_ids))
    assert (pool.num_free_blocks, pool.num_idle_blocks) == (3, 3)
    pool.ref([block_ids[1]])  # idle no more
    assert (evicted, pool.num_free_blocks) == ([], 2)
    assert pool.allocate(1) == [block_ids[2]]
    assert evicted == [block_ids[2]]
    pool.free([block_ids[2]])  # it was overwritten: nothing to keep
    assert pool.num_idle_blocks == 1
    pool.check_invariants()


def test_empty_blocks_are_taken_before_idle_ones() -> None:
    pool = BlockPool(2, pytest.fail)
    block_ids = pool.allocate(1)
    assert block_ids is not None
    pool.keep(block_ids[0])
    pool.free(block_ids)
    assert pool.allocate(1) != block_ids


def test_only_a_held_block_can_be_kept() -> None:
    with pytest.raises(AssertionError, match="held block can be kept"):
        BlockPool(1).keep(0)
