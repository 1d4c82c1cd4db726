"""The interface between the runtime and a model.

Knows nothing about requests or how a model is made.
Law: the batch is an argument; a model keeps nothing of it but what it writes into the cache.
"""

from typing import Protocol

import torch
from torch import Tensor

from llmopt.models.config import ModelConfig
from llmopt.models.decoder import KVTensors
from llmopt_kernels.paged_attention import AttentionMetadata


class DecoderModel(Protocol):
    """What the engine asks of a model."""

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its activations, and so of its keys and values."""

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        metadata: AttentionMetadata,
        kv_cache: KVTensors | None = None,
    ) -> Tensor:
        """Hidden states [T, C] of tokens [T]; writes their keys and values into the cache."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, V] of hidden states [R, C]."""

    def compute_sampling_logits(self, hidden: Tensor) -> Tensor:
        """The same where tokens are chosen from them: in one dtype, however many rows there are."""
