"""One step on the device: batch, forward pass, logits of the rows that sample, tokens.

`run` waits for the tokens; `launch` leaves them on the device, for the next step, until `finish`.
Knows nothing about scheduling or stopping.
Law: the model runs on what was scheduled, and the head only on the rows that sample; a launched
step gives the tokens that `run` would give.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from llmopt.engine.batch import build_batch
from llmopt.engine.decode_graphs import DecodeGraphs
from llmopt.engine.decoder_model import DecoderModel as DecoderModel
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.pending_step import PendingStep, late_tokens
from llmopt.engine.prompt_logprobs import prompt_logprobs
from llmopt.engine.scheduler import ScheduledRequest, SchedulerOutput
from llmopt.engine.staging import TokenReadback
from llmopt.engine.step_histogram import StepHistogram
from llmopt.engine.structured import GrammarCompiler
from llmopt.engine.token_chooser import TokenChooser, output_logprobs
from llmopt.layers.rejection_sampler import Draft
from llmopt.layers.token_logprobs import TokenLogprobs
from llmopt.models.decoder import KVTensors


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the device found out in a step.

    `token_ids` are those that each scheduled request that samples gets, in order: those of its
    draft that are taken, and one more; none ends it with "error". By request id, where they were
    asked for: `logprobs` of those tokens, and `prompt_logprobs` behind those that were known
    before. `forward_s` and `sample_s`: see `StageTimes`.
    """

    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: Mapping[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: Mapping[str, list[TokenLogprobs]] = field(default_factory=dict)
    forward_s: float = 0.0
    sample_s: float = 0.0


class _Computed(NamedTuple):
    """What the model computed: logits [R, V] of the requests that sample; None: none does."""

    sampling: tuple[ScheduledRequest, ...]
    logits: Tensor | None
    prompt_logprobs: Mapping[str, list[TokenLogprobs]]


class ModelRunner:
    """A model with its key/value cache. `grammars` are for outputs that have to match something.

    `steps` counts what was run. `graphs`, where there are some, compute the steps that they take;
    without them every call of the model goes through Python.
    """

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
        self.steps = StepHistogram(groups)
        self.graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def run(self, output: SchedulerOutput, drafts: Mapping[str, Draft] | None = None) -> StepResult:
        """Compute one step.

        Args:
            drafts: by request id, at least what was scheduled of them.

        Raises:
            EngineError: the model computed logits that are not finite numbers.
        """
        started = time.perf_counter()
        sampling, logits, of_prompts = self._compute(output)
        if logits is None:
            forward_s = time.perf_counter() - started
            self.steps.add(output, forward_s, 0.0)
            return StepResult(prompt_logprobs=of_prompts, forward_s=forward_s)
        computed = time.perf_counter()
        token_ids = self.chooser.choose(logits, sampling, drafts or {})
        of_outputs = output_logprobs(logits, sampling, token_ids)
        sample_s = time.perf_counter() - computed
        self.steps.add(output, computed - started, sample_s)
        return StepResult(token_ids, of_outputs, of_prompts, computed - started, sample_s)

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput, previous: PendingStep | None) -> PendingStep:
        """Start one step, of requests that do not need tokens on the host (`lookahead`).

        Args:
            previous: the step that was launched before, if its tokens have not been recorded.
        """
        started = time.perf_counter()
        sampling, logits, _ = self._compute(output, previous)
        tokens = None if logits is None else self.chooser.choose_ahead(logits, sampling)
        readback = None if tokens is None else TokenReadback(tokens)
        return PendingStep(output, sampling, tokens, readback, time.perf_counter() - started)

    def finish(self, pending: PendingStep) -> StepResult:
        """Wait for the tokens of a launched step. Raises as `run`."""
        started = time.perf_counter()
        token_ids = pending.read()
        wait_s = time.perf_counter() - started
        self.steps.add(pending.output, pending.launch_s, wait_s)
        return StepResult(
            [(token_id,) for token_id in token_ids], forward_s=pending.launch_s, sample_s=wait_s
        )

    def _compute(self, output: SchedulerOutput, previous: PendingStep | None = None) -> _Computed:
        late = None if previous is None else late_tokens(output, previous)
        if self.graphs is not None and self.graphs.takes(output):
            return _Computed(output.scheduled, self.graphs.replay(output, late), {})
        model = self.model
        batch = build_batch(output, self.block_size, model.device, self.groups)
        if late is not None:
            late.put_into(batch.input_ids)
        hidden = model.forward(
            batch.input_ids, batch.positions, batch.metadata, self.kv_cache
        )  # [T, C]
        of_prompts = prompt_logprobs(output, hidden, model.compute_logits)
        if not batch.sampling:
            return _Computed((), None, of_prompts)
        logits = model.compute_sampling_logits(hidden[batch.logits_indices])  # [R, V]
        return _Computed(batch.sampling, logits, of_prompts)
