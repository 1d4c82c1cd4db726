"""Which block holds the keys and values of which prefix.

A full block is named by its own tokens, all tokens before them and a salt (`BlockKey`); the names
are chained, so that a block is hashed once and not with its whole past (as in vLLM's prefix cache).
Knows nothing about requests or about who holds a block.
Law: equal keys mean equal tokens, equal past and equal salt, whatever the hash function returns.
"""

from collections.abc import Callable, Sequence

HashBlock = Callable[[int, tuple[int, ...], str], int]


def hash_block(parent_hash: int, token_ids: tuple[int, ...], salt: str) -> int:
    """The hash of a block from that of the block before it (0: none), its tokens and the salt."""
    return hash((parent_hash, token_ids, salt))


class BlockKey:
    """The name of a full block: a link of the chain of its prefix."""

    __slots__ = ("_hash", "parent", "salt", "token_ids")

    def __init__(
        self,
        parent: "BlockKey | None",
        token_ids: tuple[int, ...],
        salt: str,
        hash_function: HashBlock = hash_block,
    ) -> None:
        self.parent = parent
        self.token_ids = token_ids
        self.salt = salt
        self._hash = hash_function(0 if parent is None else hash(parent), token_ids, salt)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Compares the tokens of the whole prefix, up to the link that both chains share."""
        if not isinstance(other, BlockKey) or self.salt != other.salt:
            return False
        mine: BlockKey | None = self
        theirs: BlockKey | None = other
        while mine is not theirs:
            if mine is None or theirs is None or mine.token_ids != theirs.token_ids:
                return False
            mine, theirs = mine.parent, theirs.parent
        return True


def extend_keys(
    keys: list[BlockKey],
    token_ids: Sequence[int],
    block_size: int,
    num_blocks: int,
    salt: str,
    hash_function: HashBlock = hash_block,
) -> None:
    """Append to `keys`, those of the first blocks of `token_ids`, until there are `num_blocks`."""
    for index in range(len(keys), num_blocks):
        tokens = tuple(token_ids[index * block_size : (index + 1) * block_size])
        assert len(tokens) == block_size, "only full blocks have a key"
        keys.append(BlockKey(keys[-1] if keys else None, tokens, salt, hash_function))


class PrefixCache:
    """The blocks of one pool whose content is known; the first block of a key stays its block."""

    def __init__(self) -> None:
        self._blocks: dict[BlockKey, int] = {}
        self._keys: dict[int, BlockKey] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, key: BlockKey) -> int | None:
        """The block with this prefix, or None.

        From then on the key shares the past of the one that was found, so that the keys behind it
        are compared up to there and not up to their beginning.
        """
        block_id = self._blocks.get(key)
        if block_id is not None:
            key.parent = self._keys[block_id].parent
        return block_id

    def add(self, key: BlockKey, block_id: int) -> bool:
        """Remember the content of a block; False if another block has it already."""
        assert block_id not in self._keys, "a block is filled once"
        if self.find(key) is not None:
            return False
        self._blocks[key] = block_id
        self._keys[block_id] = key
        return True

    def remove(self, block_id: int) -> None:
        """Forget a block whose content is about to be overwritten."""
        del self._blocks[self._keys.pop(block_id)]

    def check_invariants(self) -> None:
        """Assert that keys and blocks name each other."""
        assert len(self._blocks) == len(self._keys), "keys and blocks are pairs"
        for key, block_id in self._blocks.items():
            assert self._keys[block_id] is key, "a block's key is the one that finds it"
