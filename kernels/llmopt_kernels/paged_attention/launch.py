"""How attention over a batch is cut into programs of a GPU, from what the host knows.

Knows nothing of tensors or of Triton. The law: a plan depends only on the lengths that the host has
(for a CUDA graph, bounds of them), on the layer's shape and on the number of processors; the kernel
divides each request's true length among the splits that were planned.

A tile is some tokens' query heads that share a key/value head. Decodes, and drafts that are
verified, fit in one small tile per request; chunks of prompts are cut into large ones. A batch that
mixes both is launched in parts. Where a tile's keys are more than its share of the work, they are
split among programs, whose results are merged (Dao et al., 2023: Flash-Decoding).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

MAX_SPLITS = 64
MIN_SPLIT_TOKENS = 128  # fewer keys are not worth a program and a row to merge
SMALL_TILE_ROWS = 64
_MIN_TILE_ROWS = 16  # of a matrix product
_MAX_PARTS = 4
_SMALL_TILES_PER_SM = 2  # that are resident at once; of large ones, 1


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What layers have in common that share a plan.

    group:           query heads per key/value head
    window:          None: a token sees all before it
    large_tile_rows: rows of the tiles that chunks of prompts are cut into, a power of two
    num_splits:      of every tile's keys; None: as many as the processors can use
    """

    num_kv_heads: int
    group: int
    window: int | None
    large_tile_rows: int
    num_sms: int
    num_splits: int | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch for `num_requests` requests from `first_request` on, and so for their tokens.

    one_tile:  each of these requests is one tile
    tile_rows: a power of two; a tile has tile_rows // group tokens
    num_tiles: of one key/value head; no fewer than needed
    """

    first_request: int
    num_requests: int
    first_token: int
    num_tokens: int
    one_tile: bool
    tile_rows: int
    num_tiles: int
    num_splits: int


def plan_launches(
    query_lens: Sequence[int], seq_lens: Sequence[int], shape: AttentionShape, num_sinks: int
) -> tuple[Launch, ...]:
    """The launches that cover a batch, in the order of its requests."""
    launches: list[Launch] = []
    first_request = first_token = 0
    for one_tile, num_requests in _parts(query_lens, shape.group):
        requests = slice(first_request, first_request + num_requests)
        lens = query_lens[requests]
        if one_tile:
            rows = max(next_power_of_two(max(lens) * shape.group), _MIN_TILE_ROWS)
        else:
            rows = max(next_power_of_two(shape.group), shape.large_tile_rows)
        tile_tokens = rows // shape.group
        launches.append(
            Launch(
                first_request=first_request,
                num_requests=num_requests,
                first_token=first_token,
                num_tokens=sum(lens),
                one_tile=one_tile,
                tile_rows=rows,
                num_tiles=num_requests if one_tile else sum(lens) // tile_tokens + num_requests,
                num_splits=shape.num_splits
                or _choose_num_splits(
                    [-(-n // tile_tokens) for n in lens],
                    _visible_lens(lens, seq_lens[requests], shape.window, num_sinks),
                    shape,
                    _SMALL_TILES_PER_SM if one_tile else 1,
                ),
            )
        )
        first_request += num_requests
        first_token += sum(lens)
    return tuple(launches)


def _parts(query_lens: Sequence[int], group: int) -> list[tuple[bool, int]]:
    """Runs of requests that fit in a small tile each, or that do not: (whether, how many)."""
    fits = [n * group <= SMALL_TILE_ROWS for n in query_lens]
    runs = [(small, len(list(run))) for small, run in groupby(fits)]
    return runs if len(runs) <= _MAX_PARTS else [(False, len(fits))]


def _visible_lens(
    query_lens: Sequence[int], seq_lens: Sequence[int], window: int | None, num_sinks: int
) -> list[int]:
    """Keys that some new token of each request sees."""
    if window is None:
        return list(seq_lens)
    seen = [window + num_sinks + n - 1 for n in query_lens]
    return [min(pair) for pair in zip(seq_lens, seen, strict=True)]


def _choose_num_splits(
    num_tiles: Sequence[int], visible_lens: Sequence[int], shape: AttentionShape, per_sm: int
) -> int:
    """As many splits as leave the longest request's programs no more than a resident program's
    share of all keys, and never so many that a split is short.
    """
    work = shape.num_kv_heads * sum(
        tiles * keys for tiles, keys in zip(num_tiles, visible_lens, strict=True)
    )
    longest = max(visible_lens)
    wanted = longest * shape.num_sms * per_sm // max(work, 1)
    return max(1, min(wanted, longest // MIN_SPLIT_TOKENS, MAX_SPLITS))


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()
