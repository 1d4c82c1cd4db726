"""The blocks of all layer groups, and which of them each request holds.

A request has one block table per group; they grow together and have one length. Full blocks whose
keys and values are computed are known to the prefix caches, one per group. A block is written by
its only holder, and never once it is full: a request that needs a part of a block of another gets a
copy.
Knows nothing about the queue, the budget or the tensors behind the block ids.
Law: an operation that finds no room takes nothing and hands nothing out; at most it has freed what
left a window.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from llmopt.engine.block_pool import BlockPool
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.prefix_cache import BlockKey, HashBlock, PrefixCache, extend_keys, hash_block
from llmopt.engine.request import BlockTable, Request, RequestStatus


class BlockMove(NamedTuple):
    """Copy block `source` of a layer group to block `destination`."""

    group: int
    source: int
    destination: int


@dataclass(frozen=True, slots=True)
class Match:
    """A computed prefix that a request can share: its length, and its blocks per group.

    The last block is shared in part where `num_tokens` is no multiple of the block size. `forked`:
    the blocks are those of the request's parent, not of the prefix cache.
    """

    num_tokens: int
    tables: tuple[BlockTable, ...]
    forked: bool = False


@dataclass(frozen=True, slots=True)
class PooledGroup:
    """A layer group with its blocks on the device and in host memory."""

    layers: LayerGroup
    pool: BlockPool
    cache: PrefixCache
    host_pool: BlockPool | None


class BlockSpace:
    """Owns the pools and the block tables of requests.

    Args:
        num_blocks: of each group.
        max_chunk: most tokens of one request that one step computes.
        num_host_blocks: of each group, for requests that are swapped out; empty: none.
        prefix_caching: whether blocks without holders keep their content for later requests.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        num_blocks: Sequence[int],
        *,
        block_size: int,
        max_chunk: int,
        num_host_blocks: Sequence[int] = (),
        prefix_caching: bool = True,
        hash_function: HashBlock = hash_block,
    ) -> None:
        self.block_size = block_size
        self.max_chunk = max_chunk
        self.prefix_caching = prefix_caching
        self.num_freed_window_blocks = 0
        self._hash_function = hash_function
        hosts: list[BlockPool | None] = [None] * len(groups)
        if num_host_blocks:
            hosts = [BlockPool(n) for n in num_host_blocks]
        caches = [PrefixCache() for _ in groups]
        self.groups = tuple(
            PooledGroup(layers, BlockPool(n, cache.remove), cache, host)
            for layers, n, cache, host in zip(groups, num_blocks, caches, hosts, strict=True)
        )
        self._windowed = tuple(i for i, g in enumerate(groups) if g.window is not None)

    @property
    def num_used_blocks(self) -> int:
        """Blocks with a holder, of all groups."""
        return sum(group.pool.num_used_blocks for group in self.groups)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def max_held_blocks(self, group: PooledGroup, num_tokens: int) -> int:
        """Most blocks of a group that a request holds at once until it has so many tokens."""
        return group.layers.max_held_blocks(num_tokens, self.max_chunk, self.block_size)

    def find_match(self, request: Request) -> Match:
        """The longest computed prefix that `request` can share; its last token is never in it."""
        assert request.num_pending_tokens == 0, "only known tokens can be found"
        cached = self._find_cached(request)
        parent = request.parent
        if parent is None or parent.status is not RequestStatus.RUNNING:
            return cached
        num_tokens = min(parent.num_computed_tokens, parent.num_prompt_tokens - 1)
        if num_tokens <= cached.num_tokens:
            return cached
        num_blocks = self.num_blocks_for(num_tokens)
        tables = tuple(
            self._visible_part(group.layers, table[:num_blocks], num_tokens)
            for group, table in zip(self.groups, parent.block_tables, strict=True)
        )
        if None in tables:
            return cached
        return Match(num_tokens, tuple(t for t in tables if t is not None), forked=True)

    def admit(
        self, request: Request, match: Match, num_tokens: int, reserve: int
    ) -> list[BlockMove] | None:
        """Give a request without blocks those of `match` and new ones for `num_tokens` more.

        Succeeds only if the blocks for all known tokens of the request, or for `reserve` tokens
        where that is more, are free; `reserve` tokens get theirs at once.

        Returns:
            The copies that must be done before anything is computed, or None: no room.
        """
        assert not request.block_tables, "only a request without blocks is admitted"
        num_shared = match.num_tokens // self.block_size
        length = self.num_blocks_for(max(match.num_tokens + num_tokens, reserve))
        wanted = max(request.num_tokens, reserve)
        for group, table in zip(self.groups, match.tables, strict=True):
            shared = [b for b in table[:num_shared] if b is not None]
            awakened = sum(group.pool.ref_count(block_id) == 0 for block_id in shared)
            most = max(self.max_held_blocks(group, wanted) - len(shared), length - num_shared)
            if most + awakened > group.pool.num_free_blocks:
                return None
        copies: list[BlockMove] = []
        tables: list[BlockTable] = []
        for index, (group, table) in enumerate(zip(self.groups, match.tables, strict=True)):
            held = table[:num_shared]
            group.pool.ref(b for b in held if b is not None)
            new = group.pool.allocate(length - num_shared)
            assert new is not None, "blocks that were counted are there"
            if match.num_tokens % self.block_size:
                source = table[num_shared]
                assert source is not None, "the last block of a match is visible"
                copies.append(BlockMove(index, source, new[0]))
            tables.append([*held, *new])
        request.block_tables = tuple(tables)
        request.num_computed_tokens = match.num_tokens
        request.num_registered_blocks = num_shared
        return copies

    def extend(self, request: Request, num_tokens: int) -> bool:
        """Make room for `num_tokens` more computed tokens; free what left the window."""
        for index in self._windowed:
            self._free_outside_window(request, index)
        num_slots = len(request.block_tables[0]) * self.block_size
        if request.num_computed_tokens + num_tokens <= num_slots:
            return True
        missing = self.num_blocks_for(request.num_computed_tokens + num_tokens - num_slots)
        if any(group.pool.num_free_blocks < missing for group in self.groups):
            return False
        for group, table in zip(self.groups, request.block_tables, strict=True):
            table.extend(group.pool.allocate(missing) or ())
        return True

    def trim(self, request: Request) -> None:
        """Free the blocks behind the computed tokens: those of a draft that was not taken."""
        length = self.num_blocks_for(request.num_computed_tokens)
        for group, table in zip(self.groups, request.block_tables, strict=True):
            group.pool.free(b for b in reversed(table[length:]) if b is not None)
            del table[length:]

    def register(self, request: Request) -> None:
        """Make the full blocks that were computed since the last time known to later requests.

        A block that a pending token fills is registered when that is known.
        """
        first = request.num_registered_blocks
        if request.num_computed_tokens < (first + 1) * self.block_size or not self.prefix_caching:
            return
        num_known = request.num_tokens - request.num_pending_tokens
        num_full = min(request.num_computed_tokens, num_known) // self.block_size
        keys = self._keys(request, num_full)
        for group, table in zip(self.groups, request.block_tables, strict=True):
            for key, block_id in zip(keys[first:num_full], table[first:num_full], strict=True):
                if block_id is not None and group.cache.add(key, block_id):
                    group.pool.keep(block_id)
        request.num_registered_blocks = num_full

    def release(self, request: Request) -> None:
        """Free all blocks of a request, on the device and in host memory."""
        for group, table in zip(self.groups, request.block_tables, strict=False):
            # Tail first: the beginning of a sequence is what another one may share.
            group.pool.free(b for b in reversed(table) if b is not None)
        for group, table in zip(self.groups, request.host_tables, strict=False):
            assert group.host_pool is not None, "host tables come with host blocks"
            group.host_pool.free(b for b in table if b is not None)
        request.block_tables = request.host_tables = ()
        request.num_registered_blocks = 0

    def swap_out(self, request: Request) -> list[BlockMove] | None:
        """Move a request's blocks to host memory; None: no room there."""
        held = [sum(b is not None for b in table) for table in request.block_tables]
        for group, count in zip(self.groups, held, strict=True):
            if group.host_pool is None or group.host_pool.num_free_blocks < count:
                return None
        host_pools = [group.host_pool for group in self.groups]
        tables, moves = _translate(request.block_tables, held, host_pools)
        self.release(request)
        request.host_tables = tables
        return moves

    def swap_in(self, request: Request, num_tokens: int) -> list[BlockMove] | None:
        """Bring a request's blocks back, with room for `num_tokens` more; None: no room.

        As `admit`, it wants room for all known tokens.
        """
        held = [sum(b is not None for b in table) for table in request.host_tables]
        more = self.num_blocks_for(request.num_computed_tokens + num_tokens) - len(
            request.host_tables[0]
        )
        for group, count in zip(self.groups, held, strict=True):
            most = max(self.max_held_blocks(group, request.num_tokens), count + max(0, more))
            if most > group.pool.num_free_blocks:
                return None
        host_tables = request.host_tables
        tables, moves = _translate(host_tables, held, [group.pool for group in self.groups])
        self.release(request)
        request.block_tables = tables
        extended = self.extend(request, num_tokens)
        assert extended, "blocks that were counted are there"
        return moves

    def check_invariants(self, running: Iterable[Request], waiting: Iterable[Request]) -> None:
        """Assert the laws of the pools and tables; to be called between steps."""
        running, waiting = list(running), list(waiting)
        for index, group in enumerate(self.groups):
            group.pool.check_invariants()
            group.cache.check_invariants()
            held = Counter(b for r in running for b in r.block_tables[index] if b is not None)
            assert len(held) == group.pool.num_used_blocks, "no block is held by nobody"
            for block_id, count in held.items():
                assert group.pool.ref_count(block_id) == count, "holders are the tables it is in"
            if group.host_pool is not None:
                group.host_pool.check_invariants()
                tables = [r.host_tables[index] for r in waiting if r.host_tables]
                hosted = [b for table in tables for b in table if b is not None]
                assert len(hosted) == len(set(hosted)) == group.host_pool.num_used_blocks
            for request in running:
                self._check_table(request, group, request.block_tables[index])
        for request in waiting:
            assert not request.block_tables, "a waiting request holds no block"

    def _check_table(self, request: Request, group: PooledGroup, table: BlockTable) -> None:
        assert len(table) == len(request.block_tables[0]), "tables have one length"
        assert len(table) >= self.num_blocks_for(request.num_computed_tokens)
        visible = self._visible_part(group.layers, table, request.num_computed_tokens)
        assert visible is not None, "blocks that are seen are held"
        for index in range(request.num_computed_tokens // self.block_size, len(table)):
            block_id = table[index]
            assert block_id is not None, "blocks to be written are held"
            assert group.pool.ref_count(block_id) == 1, "a block is written by its only holder"

    def _keys(self, request: Request, num_blocks: int) -> list[BlockKey]:
        extend_keys(
            request.block_keys,
            request.token_ids,
            self.block_size,
            num_blocks,
            request.cache_salt,
            self._hash_function,
        )
        return request.block_keys

    def _find_cached(self, request: Request) -> Match:
        """The longest prefix of full blocks for which every group has what its layers see.

        A request that needs the logits of its prompt has to compute all of it.
        """
        if not self.prefix_caching or request.lacks_prompt_logprobs:
            return Match(0, tuple([] for _ in self.groups))
        num_full = request.num_tokens // self.block_size
        keys = self._keys(request, num_full)
        tables: list[BlockTable] = []
        for group in self.groups:
            table: BlockTable = []
            for key in keys[:num_full]:
                block_id = group.cache.find(key)
                if block_id is None and group.layers.window is None:
                    break
                table.append(block_id)
            tables.append(table)
            num_full = len(table)
        held = [[b is not None for b in table[:num_full]] for table in tables]
        num_blocks = self._longest_visible(held, num_full, request.num_tokens - 1)
        num_tokens = min(num_blocks * self.block_size, request.num_tokens - 1)
        parts = [
            self._visible_part(group.layers, table[:num_blocks], num_tokens)
            for group, table in zip(self.groups, tables, strict=True)
        ]
        return Match(num_tokens, tuple(part or [] for part in parts))

    def _longest_visible(
        self, held: Sequence[Sequence[bool]], num_blocks: int, max_tokens: int
    ) -> int:
        """Most blocks, up to `num_blocks`, after which a token finds all that it sees held."""
        runs = [[*accumulate(flags, lambda run, flag: (run + 1) * flag)] for flags in held]
        leads = [flags.index(False) if False in flags else len(flags) for flags in held]
        for count in range(num_blocks, 0, -1):
            num_tokens = min(count * self.block_size, max_tokens)
            for group, run, lead in zip(self.groups, runs, leads, strict=True):
                first = group.layers.first_block(num_tokens, self.block_size)
                num_sinks = min(first, group.layers.num_sink_blocks(self.block_size))
                if run[count - 1] < count - first or lead < num_sinks:
                    break
            else:
                return count
        return 0

    def _visible_part(
        self, layers: LayerGroup, table: BlockTable, num_tokens: int
    ) -> BlockTable | None:
        """`table` with None for what a token at `num_tokens` does not see; None if it lacks any."""
        if layers.window is None:
            return None if None in table else table
        num_sink_blocks = layers.num_sink_blocks(self.block_size)
        first = layers.first_block(num_tokens, self.block_size)
        sinks, tail = table[: min(num_sink_blocks, first)], table[first:]
        if None in sinks or None in tail:
            return None
        return [*sinks, *([None] * (len(table) - len(sinks) - len(tail))), *tail]

    def _free_outside_window(self, request: Request, index: int) -> None:
        group, table = self.groups[index], request.block_tables[index]
        # What the last computed token saw is kept: samples that fork here begin with that token.
        position = max(0, request.num_computed_tokens - 1)
        block = group.layers.first_block(position, self.block_size) - 1
        first = group.layers.num_sink_blocks(self.block_size)
        left: list[int] = []
        while block >= first and (block_id := table[block]) is not None:
            left.append(block_id)
            table[block] = None
            block -= 1
        group.pool.free(left)
        self.num_freed_window_blocks += len(left)


def _translate(
    tables: Sequence[BlockTable], counts: Sequence[int], pools: Sequence[BlockPool | None]
) -> tuple[tuple[BlockTable, ...], list[BlockMove]]:
    """Tables of new blocks in place of the old ones, and the moves that fill them."""
    moves: list[BlockMove] = []
    translated: list[BlockTable] = []
    for index, (table, count, pool) in enumerate(zip(tables, counts, pools, strict=True)):
        assert pool is not None, "blocks are moved between pools"
        new = iter(pool.allocate(count) or ())
        translated.append([None if b is None else next(new) for b in table])
        moves += [
            BlockMove(index, old, to)
            for old, to in zip(table, translated[-1], strict=True)
            if old is not None and to is not None
        ]
    return tuple(translated), moves
