"""Layers that see the same positions, and so need the same cache blocks.

Each group has a pool and block tables of its own, and its tensors hold its own layers only. So a
layer with a window frees the blocks that left it while a layer without one keeps them, and no block
is padded to another group's number of layers.
Knows nothing about pools, requests or tensors.
Law: every layer is in one group.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers with one window: a token sees itself and the window - 1 positions before it.

    `window` None: it sees all. `num_sinks`: the first positions, which it sees besides (attention
    sinks: Xiao et al., 2023).
    """

    layers: tuple[int, ...]
    window: int | None = None
    num_sinks: int = 0

    def first_block(self, position: int, block_size: int) -> int:
        """The first block, behind those of the sinks, that a token at `position` sees."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1) // block_size

    def num_sink_blocks(self, block_size: int) -> int:
        """Blocks that are never outside the window."""
        return -(-self.num_sinks // block_size)

    def max_held_blocks(self, num_tokens: int, max_chunk: int, block_size: int) -> int:
        """Most blocks at once while `num_tokens` are computed in chunks of up to `max_chunk`."""
        every = -(-num_tokens // block_size)
        if self.window is None:
            return every
        # The window of the token before a chunk, and the chunk, wherever they begin in a block.
        spanned = -(-(self.window - 1 + max_chunk) // block_size) + 1
        return min(every, spanned + self.num_sink_blocks(block_size))


def group_layers(
    windows: Sequence[int | None], max_window: int | None = None, num_sinks: int = 0
) -> tuple[LayerGroup, ...]:
    """The groups of a model whose layers have these windows, the one that sees most first.

    max_window: caps what the layers see; those that it caps see `num_sinks` first positions too.
    """
    members: dict[tuple[int | None, int], list[int]] = {}
    for layer, window in enumerate(windows):
        capped = max_window is not None and (window is None or window > max_window)
        seen = (max_window, num_sinks) if capped else (window, 0)
        members.setdefault(seen, []).append(layer)
    order = sorted(members, key=lambda seen: (seen[0] is not None, -(seen[0] or 0)))
    return tuple(LayerGroup(tuple(members[seen]), *seen) for seen in order)
