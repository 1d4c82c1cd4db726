"""The pool of key/value cache blocks: who holds which block, by reference count.

Knows nothing about requests, tokens or the tensors behind the block ids.
Law: every block is either free (count 0, in the free list exactly once) or held (count >= 1).
"""

from collections.abc import Iterable


class BlockPool:
    """Blocks `0 .. num_blocks - 1`; every operation costs O(1) per block it names."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1, "a pool holds at least one block"
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        # A stack: the block freed last is handed out first, so that little memory is ever touched.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        """Blocks with at least one holder."""
        return self.num_blocks - len(self._free)

    def ref_count(self, block_id: int) -> int:
        """Number of holders of a block."""
        return self._ref_counts[block_id]

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take `num_blocks` free blocks, each with one holder, or take none and return None."""
        assert num_blocks >= 0, "a number of blocks is not negative"
        if num_blocks > len(self._free):
            return None
        block_ids = [self._free.pop() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        return block_ids

    def ref(self, block_ids: Iterable[int]) -> None:
        """Add a holder to each of these held blocks."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, "only a held block can be shared"
            self._ref_counts[block_id] += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """Drop one holder of each block; a block without holders is free again."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, "a block is freed once per holder"
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free.append(block_id)

    def check_invariants(self) -> None:
        """Assert the law of this module; O(num_blocks)."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list once"
        for block_id, count in enumerate(self._ref_counts):
            assert count >= 0, "a reference count is not negative"
            assert (count == 0) == (block_id in free), "free blocks are those without holders"
