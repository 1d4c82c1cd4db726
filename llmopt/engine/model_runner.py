"""One step on the device: batch, forward pass, logits of the rows that sample, tokens.

Knows nothing about scheduling or stopping.
Law: the model runs on what was scheduled, and the head only on the rows that sample.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llmopt.engine.batch import build_batch
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.prompt_logprobs import prompt_logprobs
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.engine.structured import GrammarCompiler
from llmopt.engine.token_chooser import TokenChooser, output_logprobs
from llmopt.layers.rejection_sampler import Draft
from llmopt.layers.token_logprobs import TokenLogprobs
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


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the device found out in a step.

    `token_ids` are those that each scheduled request that samples gets, in order: those of its
    draft that are taken, and one more. By request id, where they were asked for: `logprobs` of
    those tokens, and `prompt_logprobs` behind those that were known before. `forward_s` and
    `sample_s`: see `StageTimes`.
    """

    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: Mapping[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: Mapping[str, list[TokenLogprobs]] = field(default_factory=dict)
    forward_s: float = 0.0
    sample_s: float = 0.0


class ModelRunner:
    """A model with its key/value cache. `grammars` are for outputs that have to match something."""

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVTensors,
        block_size: int,
        groups: Sequence[LayerGroup],
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.model = model
        self.chooser = TokenChooser(model.config.vocab_size, model.device, grammars)
        self.kv_cache = kv_cache
        self.block_size = block_size
        self.groups = groups

    @torch.inference_mode()
    def run(self, output: SchedulerOutput, drafts: Mapping[str, Draft] | None = None) -> StepResult:
        """Compute one step.

        Args:
            drafts: by request id, at least what was scheduled of them.

        Raises:
            EngineError: the model computed logits that are not finite numbers.
        """
        started = time.perf_counter()
        batch = build_batch(output, self.block_size, self.model.device, self.groups)
        hidden = self.model.forward(
            batch.input_ids, batch.positions, batch.metadata, self.kv_cache
        )  # [T, C]
        of_prompts = prompt_logprobs(output, hidden, self.model.compute_logits)
        if not batch.sampling:
            return StepResult(prompt_logprobs=of_prompts, forward_s=time.perf_counter() - started)
        logits = self.model.compute_logits(hidden[batch.logits_indices])  # [R, V]
        computed = time.perf_counter()
        token_ids = self.chooser.choose(logits, batch.sampling, drafts or {})
        of_outputs = output_logprobs(logits, batch.sampling, token_ids)
        sample_s = time.perf_counter() - computed
        return StepResult(token_ids, of_outputs, of_prompts, computed - started, sample_s)
