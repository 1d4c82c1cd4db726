"""Where logits come from: one face for our models, kept logits, and runtimes of others.

Knows nothing about statistics. The law it keeps: every source gives the rows of a window in the
same order and in chunks of the same size, so that two of them can be compared chunk by chunk.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from llmopt.models.config import ModelConfig
from llmopt.quality.windows import Window
from llmopt_kernels.paged_attention.metadata import AttentionMetadata

CHUNK_ELEMENTS = 1 << 23  # logits at a time: many rows for the matrix product, little memory


class LogitSource(Protocol):
    """Something that gives logits, or log-probabilities, for every scored token of a window."""

    @property
    def name(self) -> str:
        """What a reader calls it, such as the model's name."""

    @property
    def scheme(self) -> str:
        """Its weights' scheme, such as "bf16" or "gptq-w4g64"."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    @property
    def max_tokens(self) -> int:
        """Tokens that it can read in front of the last one of a window."""

    def chunks(self, window: Window) -> Iterator[Tensor]:
        """Logits [<= rows_per_chunk(V), V] that sum up to `window.num_scored` rows, in order."""


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


class ModelLogits:
    """Logits of a model that runs here."""

    def __init__(self, model: ScorableModel, *, name: str, scheme: str) -> None:
        self.model = model
        self.name = name
        self.scheme = scheme

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.model.config.vocab_size

    @property
    def max_tokens(self) -> int:
        """The model's own limit."""
        return self.model.config.max_model_len

    def chunks(self, window: Window) -> Iterator[Tensor]:
        """Logits of the rows that have a scored token next; the head runs on those alone.

        A last token beyond the model's limit is not read.
        """
        read = window.token_ids[: self.max_tokens].to(self.model.device)
        with torch.inference_mode():
            hidden = self.model.forward(
                read,
                torch.arange(len(read), device=self.model.device),
                AttentionMetadata.dense([len(read)]),
            )  # [n, C], or one row less
        last = len(window.token_ids) - 1
        scored = hidden[last - window.num_scored : last]
        for rows in torch.split(scored, rows_per_chunk(self.vocab_size)):
            with torch.inference_mode():
                logits = self.model.compute_logits(rows)
            yield logits


class DeferredLogits:
    """Logits of a model that is loaded when the first of them are asked for.

    config: that of the model that `load` gives
    """

    def __init__(
        self, load: Callable[[], ScorableModel], config: ModelConfig, *, name: str, scheme: str
    ) -> None:
        self._load = load
        self._config = config
        self._loaded: ModelLogits | None = None
        self.name = name
        self.scheme = scheme

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._config.vocab_size

    @property
    def max_tokens(self) -> int:
        """The model's own limit."""
        return self._config.max_model_len

    def chunks(self, window: Window) -> Iterator[Tensor]:
        """As those of `ModelLogits`. Raises what loading raises."""
        if self._loaded is None:
            self._loaded = ModelLogits(self._load(), name=self.name, scheme=self.scheme)
        yield from self._loaded.chunks(window)


class WrappedLogits:
    """What a wrapper of another source has from it: all but the logits."""

    def __init__(self, source: LogitSource) -> None:
        self.source = source

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @property
    def scheme(self) -> str:
        """The source's."""
        return self.source.scheme

    @property
    def vocab_size(self) -> int:
        """The source's."""
        return self.source.vocab_size

    @property
    def max_tokens(self) -> int:
        """The source's."""
        return self.source.max_tokens


def rows_per_chunk(vocab_size: int) -> int:
    """Rows of logits to hold at a time."""
    return max(1, CHUNK_ELEMENTS // vocab_size)
