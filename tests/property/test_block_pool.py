"""The block pool against a dictionary of holders, under random operations."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmopt.engine.block_pool import BlockPool


class BlockPoolMachine(RuleBasedStateMachine):
    """`tables` are the holders; a block may be in several of them."""

    @initialize(num_blocks=st.integers(1, 12))
    def make_pool(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, self.evict)
        self.kept: set[int] = set()
        self.idle: list[int] = []  # the block freed longest ago first
        self.tables: list[list[int]] = []

    def evict(self, block_id: int) -> None:
        assert block_id == self.idle.pop(0)
        self.kept.remove(block_id)

    @rule(num_blocks=st.integers(0, 6))
    def allocate(self, num_blocks: int) -> None:
        num_free = self.pool.num_free_blocks
        block_ids = self.pool.allocate(num_blocks)
        assert (block_ids is None) == (num_blocks > num_free)
        if block_ids is not None:
            held = {block_id for table in self.tables for block_id in table}
            assert len(set(block_ids)) == num_blocks
            assert not held & set(block_ids)
            self.tables.append(block_ids)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        prefix = table[: data.draw(st.integers(0, len(table)))]
        self.pool.ref(prefix)
        self.tables.append(prefix)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table = self.tables.pop(index)
        held = {block_id for other in self.tables for block_id in other}
        self.idle += [b for b in table if b in self.kept and b not in held]
        self.pool.free(table)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        held = sorted({block_id for table in self.tables for block_id in table})
        block_id = data.draw(st.sampled_from(held))
        self.pool.keep(block_id)
        self.kept.add(block_id)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(self.idle))
        self.idle.remove(block_id)
        self.pool.ref([block_id])
        self.tables.append([block_id])

    @invariant()
    def counts_are_exact(self) -> None:
        self.pool.check_invariants()
        holders = [block_id for table in self.tables for block_id in table]
        assert self.pool.num_used_blocks == len(set(holders))
        assert self.pool.num_idle_blocks == len(self.idle)
        assert self.pool.num_free_blocks + self.pool.num_used_blocks == self.pool.num_blocks
        for block_id in range(self.pool.num_blocks):
            assert self.pool.ref_count(block_id) == holders.count(block_id)


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
