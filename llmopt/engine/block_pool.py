"""The pool of key/value cache blocks: who holds which block, by reference count.

Knows nothing about requests, tokens, or why a block's content is worth keeping.
Law: every block is held (count >= 1), idle (count 0, content kept, in the queue of eviction once),
or empty (count 0, in the free list once).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable


class BlockPool:
    """Blocks `0 .. num_blocks - 1`; every operation costs O(1) per block it names.

    Args:
        num_blocks: how many there are.
        on_evict: told of each block whose kept content is about to be overwritten.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] | None = None) -> None:
        assert num_blocks >= 1, "a pool holds at least one block"
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._ref_counts = [0] * num_blocks
        self._kept = [False] * num_blocks
        self._idle: OrderedDict[int, None] = OrderedDict()  # the block freed longest ago first
        # A stack: the block freed last is handed out first, so that little memory is ever touched.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds, idle ones among them."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that nobody holds and whose content is kept until their place is needed."""
        return len(self._idle)

    @property
    def num_used_blocks(self) -> int:
        """Blocks with at least one holder."""
        return self.num_blocks - self.num_free_blocks

    def ref_count(self, block_id: int) -> int:
        """Number of holders of a block."""
        return self._ref_counts[block_id]

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take `num_blocks` free blocks, each with one holder, or take none and return None.

        Empty blocks go first, then idle ones, the one freed longest ago first.
        """
        assert num_blocks >= 0, "a number of blocks is not negative"
        if num_blocks > self.num_free_blocks:
            return None
        block_ids = [self._free.pop() if self._free else self._evict() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        return block_ids

    def ref(self, block_ids: Iterable[int]) -> None:
        """Add a holder to each of these blocks, which are held or idle."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                assert block_id in self._idle, "only a held block or an idle one can be shared"
                del self._idle[block_id]
            self._ref_counts[block_id] += 1

    def keep(self, block_id: int) -> None:
        """From now on a held block's content is worth keeping when nobody holds it."""
        assert self._ref_counts[block_id] > 0, "only a held block can be kept"
        self._kept[block_id] = True

    def free(self, block_ids: Iterable[int]) -> None:
        """Drop one holder of each block; a block without holders is idle or empty again."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, "a block is freed once per holder"
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] > 0:
                continue
            if self._kept[block_id]:
                self._idle[block_id] = None
            else:
                self._free.append(block_id)

    def check_invariants(self) -> None:
        """Assert the law of this module; O(num_blocks)."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list once"
        for block_id, count in enumerate(self._ref_counts):
            assert count >= 0, "a reference count is not negative"
            without_holder = (block_id in free) + (block_id in self._idle)
            assert without_holder == (count == 0), "free blocks are those without holders"
            assert not (block_id in free and self._kept[block_id]), "an empty block keeps nothing"
            assert block_id not in self._idle or self._kept[block_id], "an idle block is kept"

    def _evict(self) -> int:
        block_id, _ = self._idle.popitem(last=False)
        self._kept[block_id] = False
        if self._on_evict is not None:
            self._on_evict(block_id)
        return block_id
