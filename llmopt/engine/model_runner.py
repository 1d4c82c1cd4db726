"""One step on the device: batch, forward pass, logits of the rows that sample, tokens.

Knows nothing about scheduling or stopping.
Law: the model runs on what was scheduled, and the head only on the rows that sample.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmopt.engine.batch import build_batch
from llmopt.engine.request import Request
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.layers.sampler import SamplingRow, sample
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


class ModelRunner:
    """A model with its key/value cache."""

    def __init__(self, model: DecoderModel, kv_cache: KVTensors, block_size: int) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.block_size = block_size

    @torch.inference_mode()
    def run(self, output: SchedulerOutput) -> list[int]:
        """Compute one step; return a token for each scheduled request that samples, in order.

        Raises:
            EngineError: the model computed logits that are not finite numbers.
        """
        batch = build_batch(output, self.block_size, self.model.device)
        hidden = self.model.forward(
            batch.input_ids, batch.positions, batch.metadata, self.kv_cache
        )  # [T, C]
        if not batch.sampling_requests:
            return []
        logits = self.model.compute_logits(hidden[batch.logits_indices])  # [R, V]
        return sample(logits, sampling_rows(batch.sampling_requests))


def sampling_rows(requests: Sequence[Request]) -> list[SamplingRow]:
    """How to choose the next token of each request; stop tokens are banned below `min_tokens`."""
    rows: list[SamplingRow] = []
    for request in requests:
        params = request.params
        position = request.num_output_tokens
        banned = request.stop_token_ids if position < params.min_tokens else ()
        rows.append(
            SamplingRow(
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                seed=request.seed,
                position=position,
                banned_token_ids=banned,
            )
        )
    return rows
