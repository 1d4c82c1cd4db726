from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.prefix_cache import BlockKey, HashBlock, PrefixCache, extend_keys, hash_block


def collide(_parent: int, _tokens: tuple[int, ...], _salt: str) -> int:
    return 7


def chain(blocks: list[tuple[int, ...]], salt: str, hash_function: HashBlock) -> BlockKey:
    key = None
    for token_ids in blocks:
        key = BlockKey(key, token_ids, salt, hash_function)
    assert key is not None
    return key


blocks = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=3)
salts = st.sampled_from(["", "a"])


@given(blocks, salts, blocks, salts, st.sampled_from([hash_block, collide]))
def test_keys_are_equal_when_the_whole_prefix_and_the_salt_are(
    first: list[tuple[int, ...]],
    first_salt: str,
    second: list[tuple[int, ...]],
    second_salt: str,
    hash_function: HashBlock,
) -> None:
    same = (first, first_salt) == (second, second_salt)
    one, two = chain(first, first_salt, hash_function), chain(second, second_salt, hash_function)
    assert (one == two) == same
    if same:
        assert hash(one) == hash(two)


def test_the_hash_depends_on_tokens_past_and_salt() -> None:
    prefixes = [([(1, 2)], ""), ([(1, 3)], ""), ([(1, 2)], "a"), ([(3, 3), (1, 2)], "")]
    assert len({hash(chain(prefix, salt, hash_block)) for prefix, salt in prefixes}) == 4


def test_a_chain_longer_than_the_stack_is_compared() -> None:
    long = [(i, i) for i in range(20_000)]
    assert chain(long, "", hash_block) == chain(long, "", hash_block)


def test_keys_are_extended_and_never_made_again() -> None:
    keys: list[BlockKey] = []
    extend_keys(keys, [1, 2, 3, 4, 5], 2, 1, "")
    first = keys[0]
    extend_keys(keys, [1, 2, 3, 4, 5], 2, 2, "")
    assert [key.token_ids for key in keys] == [(1, 2), (3, 4)]
    assert keys[0] is first
    assert keys[1].parent is first


class CountedTokens(tuple[int, ...]):
    """Tokens of a block that count how often they are compared."""

    num_comparisons = 0

    __hash__ = tuple.__hash__

    def __ne__(self, other: object) -> bool:
        CountedTokens.num_comparisons += 1
        return tuple.__ne__(self, other)


@given(num_blocks=st.integers(1, 200), first=st.integers(0, 199), salt=salts)
def test_a_prefix_is_found_in_a_time_that_grows_as_it(
    num_blocks: int, first: int, salt: str
) -> None:
    """Whether others had the prefix, computed it at the same time, or lost the blocks before
    `first`.
    """

    def new_keys() -> list[BlockKey]:
        keys: list[BlockKey] = []
        for index in range(num_blocks):
            parent = keys[-1] if keys else None
            keys.append(BlockKey(parent, CountedTokens((index, 7)), salt))
        return keys

    cache, first = PrefixCache(), min(first, num_blocks)
    for block_id, key in enumerate(new_keys()):
        assert cache.add(key, block_id)
    CountedTokens.num_comparisons = 0
    assert not any(cache.add(key, num_blocks) for key in new_keys())
    for block_id in range(first):
        cache.remove(block_id)
    keys = new_keys()
    for _ in range(3):
        found = [cache.find(key) for key in keys]
        assert found == [*[None] * first, *range(first, num_blocks)]
    assert CountedTokens.num_comparisons <= 10 * num_blocks
    cache.check_invariants()


def test_a_colliding_hash_finds_the_right_block() -> None:
    cache = PrefixCache()
    keys = [chain([(i, i)], "", collide) for i in range(5)]
    for block_id, key in enumerate(keys):
        assert cache.add(key, block_id)
    assert [cache.find(chain([(i, i)], "", collide)) for i in range(5)] == list(range(5))
    assert cache.find(chain([(1, 1), (2, 2)], "", collide)) is None
    cache.check_invariants()


def test_the_first_block_of_a_key_stays_its_block_until_it_is_removed() -> None:
    cache = PrefixCache()
    key = chain([(1, 2)], "", hash_block)
    assert cache.add(key, 3)
    assert not cache.add(chain([(1, 2)], "", hash_block), 4)
    assert (cache.find(key), len(cache)) == (3, 1)
    cache.remove(3)
    assert (cache.find(key), len(cache)) == (None, 0)
    cache.check_invariants()
