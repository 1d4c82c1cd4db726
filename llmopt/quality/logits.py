"""The logits of a model on a window of text, a few rows at a time, and those of the base kept.

Knows nothing about statistics. The law it keeps: the chunks of one window are the same whether
they were kept or computed again, so that what is compared never depends on the cache.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from llmopt.errors import UsageError
from llmopt.models.config import ModelConfig
from llmopt.quality.text import EvaluationWindows
from llmopt_kernels.paged_attention.metadata import AttentionMetadata

CHUNK_ELEMENTS = 1 << 23  # logits at a time: many rows for the matrix product, little memory
DEFAULT_CACHE_BYTES = 2 << 30


class ScorableModel(Protocol):
    """What quality needs of a model; `llmopt.models.decoder.Decoder` is one."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""

    def forward(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Token ids and positions, int64 [T] -> hidden states [T, C]."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [R, C] -> logits [R, V]."""


class BaseLogits:
    """The base model's logits, computed once for every target that is compared with it.

    Windows are kept in RAM while they fit in `max_cache_bytes` and are computed again beyond it.
    Raises UsageError when the windows are longer than the model can read.
    """

    def __init__(
        self,
        model: ScorableModel,
        windows: EvaluationWindows,
        *,
        name: str,
        scheme: str,
        max_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        check_window(model, windows)
        self.model = model
        self.windows = windows
        self.name = name
        self.scheme = scheme
        self._free_bytes = max_cache_bytes
        self._cache: dict[int, list[Tensor]] = {}

    def chunks(self, index: int) -> Iterator[Tensor]:
        """Logits of window `index`, as `logit_chunks` gives them."""
        if index in self._cache:
            yield from self._cache[index]
            return
        kept: list[Tensor] = []
        num_bytes = 0
        for chunk in logit_chunks(self.model, self.windows.token_ids[index]):
            num_bytes += chunk.nbytes
            if num_bytes <= self._free_bytes:
                kept.append(chunk.cpu())
            else:
                kept.clear()
            yield chunk
        if num_bytes <= self._free_bytes:
            self._cache[index] = kept
            self._free_bytes -= num_bytes


def check_window(model: ScorableModel, windows: EvaluationWindows) -> None:
    """Raise UsageError when the windows are longer than the model was made to read."""
    limit = model.config.max_model_len
    if windows.window > limit:
        raise UsageError(
            f"the model reads at most {limit} tokens, and the windows have {windows.window}",
            f"Choose a window of at most {limit} tokens.",
        )


def rows_per_chunk(vocab_size: int) -> int:
    """Rows of logits to hold at a time."""
    return max(1, CHUNK_ELEMENTS // vocab_size)


def logit_chunks(model: ScorableModel, token_ids: Tensor) -> Iterator[Tensor]:
    """Logits at every position of a window that has a next token, in order.

    token_ids: int64 [n + 1]. Yields tensors [<= rows_per_chunk, V] that sum up to n rows.
    """
    with torch.inference_mode():
        num_tokens = len(token_ids)
        positions = torch.arange(num_tokens, device=model.device)
        metadata = AttentionMetadata.dense([num_tokens])
        hidden = model.forward(token_ids.to(model.device), positions, metadata)  # [n + 1, C]
        chunks = torch.split(hidden[:-1], rows_per_chunk(model.config.vocab_size))
    for rows in chunks:
        with torch.inference_mode():
            logits = model.compute_logits(rows)
        yield logits
