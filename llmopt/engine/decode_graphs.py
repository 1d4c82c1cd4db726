"""Decode steps as recorded CUDA graphs: one launch in place of some hundreds.

A graph computes a fixed number of rows with fixed bounds, so a step takes the next larger bucket of
rows, and the next larger class of lengths (how far attention splits the keys of a request is
recorded too). Steps with a chunk of a prompt, with drafts, or with more rows are not taken.
The graphs share one memory pool, as no two of them run at once: logits are to be used before the
next replay, on the same stream.

Knows nothing about scheduling, sampling or how a graph is recorded (`Capture`).
Law: a replay gives the logits that the model gives for the same step, to the rounding of kernels
for another number of rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmopt.engine.decode_inputs import DecodeInputs
from llmopt.engine.decoder_model import DecoderModel
from llmopt.engine.layer_group import LayerGroup
from llmopt.engine.pending_step import LateTokens
from llmopt.engine.scheduler import SchedulerOutput
from llmopt.models.decoder import KVTensors

MAX_BUCKET = 256
_SMALL_BUCKETS = (1, 2, 4)
_BUCKET_STEP = 8
_SHORTEST_CLASS = 1024
_CLASS_GROWTH = 8

_Stream: Any = torch.cuda.Stream  # untyped in torch

Compute = Callable[[], Tensor]
Capture = Callable[[Compute], Compute]


def decode_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Numbers of rows: 1, 2, 4, and multiples of 8 up to what the largest batch needs."""
    largest = min(max_num_seqs, MAX_BUCKET)
    multiples = range(_BUCKET_STEP, -(-largest // _BUCKET_STEP) * _BUCKET_STEP + 1, _BUCKET_STEP)
    small = [size for size in _SMALL_BUCKETS if largest > size // 2]
    return (*small, *(multiples if largest > _SMALL_BUCKETS[-1] else ()))


def length_classes(max_model_len: int) -> tuple[int, ...]:
    """Bounds of the lengths: 1024, then eight times as many each, and the model's last."""
    classes = []
    bound = _SHORTEST_CLASS
    while bound < max_model_len:
        classes.append(bound)
        bound *= _CLASS_GROWTH
    return (*classes, max_model_len)


class DecodeGraphs:
    """The graphs of a model, each recorded when `capture_all` or the first step asks for it.

    Args:
        padding_blocks: of each layer group, a block of `kv_cache` that no request ever gets.
    """

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVTensors,
        groups: Sequence[LayerGroup],
        *,
        padding_blocks: Sequence[int],
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        capture: Capture,
    ) -> None:
        self.buckets = decode_buckets(max_num_seqs)
        self.classes = length_classes(max_model_len)
        self._model = model
        self._kv_cache = kv_cache
        self._capture = capture
        self._inputs = DecodeInputs(
            groups,
            padding_blocks,
            block_size=block_size,
            max_rows=self.buckets[-1],
            max_model_len=max_model_len,
            device=model.device,
        )
        self._graphs: dict[tuple[int, int], Compute] = {}
        self._logits: Tensor | None = None  # of all graphs, which would keep as many of their own

    def takes(self, output: SchedulerOutput) -> bool:
        """Whether a step is nothing but decodes, and not too many."""
        return 0 < len(output.scheduled) <= self.buckets[-1] and all(
            item.num_scheduled_tokens == 1
            and item.samples
            and not item.request.lacks_prompt_logprobs
            for item in output.scheduled
        )

    def replay(self, output: SchedulerOutput, late: LateTokens | None) -> Tensor:
        """The logits [B, V] of a step that is taken, valid until the next replay."""
        num_rows = len(output.scheduled)
        longest = max(item.start for item in output.scheduled) + 1
        bucket = next(size for size in self.buckets if size >= num_rows)
        bound = next(length for length in self.classes if length >= longest)
        graph = self._graph(bucket, bound)
        self._inputs.load(output, late)
        return graph()[:num_rows]

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Record every graph, the largest first: the others fit into its memory."""
        for bucket in reversed(self.buckets):
            for bound in reversed(self.classes):
                self._graph(bucket, bound)

    def _graph(self, bucket: int, bound: int) -> Compute:
        key = (bucket, bound)
        if key not in self._graphs:
            self._graphs[key] = self._capture(self._computation(bucket, bound))
        return self._graphs[key]

    def _computation(self, bucket: int, bound: int) -> Compute:
        inputs, model = self._inputs, self._model
        metadata = inputs.metadata(bucket, bound)

        def compute() -> Tensor:
            hidden = model.forward(
                inputs.input_ids(bucket), inputs.positions(bucket), metadata, self._kv_cache
            )
            return self._kept(model.compute_sampling_logits(hidden))

        return compute

    def _kept(self, logits: Tensor) -> Tensor:
        """The logits [bucket, V] in the one place that they have outside the graphs' memory. It is
        made when the first graph is tried before it is recorded.
        """
        if self._logits is None:
            self._logits = logits.new_empty(self.buckets[-1], *logits.shape[1:])
        kept = self._logits[: len(logits)]
        kept.copy_(logits)
        return kept


class CudaCapture:
    """Records CUDA graphs into one memory pool.

    What is recorded runs twice before: kernels are compiled and libraries take their workspaces
    then. See "CUDA Graphs" in the notes on CUDA of torch's documentation.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """Record `compute`; what is returned runs it again, and returns its result in place."""
        current = torch.cuda.current_stream(self._device)
        side = _Stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(2):
                compute()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
