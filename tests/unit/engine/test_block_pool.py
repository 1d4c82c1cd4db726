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
    with pytest.raises(AssertionError, match="held block"):
        pool.ref([0])


def test_check_invariants_sees_a_block_that_is_lost() -> None:
    pool = BlockPool(2)
    pool._free.pop()
    with pytest.raises(AssertionError, match="without holders"):
        pool.check_invariants()
