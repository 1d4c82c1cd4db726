"""Logits kept in memory, for a base that several targets are compared with.

Knows nothing about statistics. The law it keeps: the chunks of a window are the same whether they
were kept or computed again, so that what is compared never depends on the cache.
"""

from collections.abc import Iterator

from torch import Tensor

from llmopt.quality.source import LogitSource, WrappedLogits
from llmopt.quality.windows import Window

DEFAULT_CACHE_BYTES = 2 << 30

WindowKey = tuple[bytes, int]


class KeptLogits(WrappedLogits):
    """What a source gave, kept in RAM while it fits in `max_cache_bytes`, else computed again."""

    def __init__(self, source: LogitSource, max_cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        super().__init__(source)
        self._free_bytes = max_cache_bytes
        self._kept: dict[WindowKey, list[Tensor]] = {}

    def chunks(self, window: Window) -> Iterator[Tensor]:
        """Logits of the window, as the source gives them; kept ones lie on the CPU."""
        key = (window.token_ids.numpy().tobytes(), window.num_scored)
        if key in self._kept:
            yield from self._kept[key]
            return
        chunks: list[Tensor] = []
        num_bytes = 0
        for chunk in self.source.chunks(window):
            num_bytes += chunk.nbytes
            if num_bytes <= self._free_bytes:
                chunks.append(chunk.cpu())
            else:
                chunks.clear()
            yield chunk
        if num_bytes <= self._free_bytes:
            self._kept[key] = chunks
            self._free_bytes -= num_bytes
