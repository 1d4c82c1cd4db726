"""What a GPU does before the first request, so that no request pays for it.

Kernels are compiled at the first launch of each shape class, and decode steps are recorded as
graphs. All of it writes into one block of the cache that no request ever gets.
Knows nothing about requests or scheduling.
Law: afterwards the cache is as before but for that block, and on a CPU nothing happens at all.
"""

import numpy as np
import torch

from llmopt.engine.config import EngineConfig
from llmopt.engine.decode_graphs import CudaCapture, DecodeGraphs, decode_buckets
from llmopt.engine.kv_plan import KVPlan
from llmopt.engine.model_runner import ModelRunner
from llmopt.engine.staging import to_device
from llmopt.layers.sampler import SamplingRow, sample_async
from llmopt.models.decoder import Decoder
from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.paged_attention import AttentionMetadata
from llmopt_kernels.store_kv import cache_tensors

_SAMPLING_ROWS = (
    SamplingRow(temperature=0.0, top_k=None, top_p=1.0, seed=0, position=0),
    SamplingRow(temperature=1.0, top_k=None, top_p=1.0, seed=0, position=0),
    SamplingRow(temperature=1.0, top_k=8, top_p=0.9, seed=0, position=0, min_p=0.1),
)


def num_padding_blocks(device: torch.device) -> int:
    """Blocks of each layer group behind those of the plan, which no request ever gets."""
    return 1 if device.type == "cuda" else 0


def warm_up(runner: ModelRunner, plan: KVPlan, config: EngineConfig) -> None:
    """Compile and record what steps under `config` launch; `runner.graphs` are made here."""
    model = runner.model
    if model.device.type != "cuda":
        return
    if isinstance(model, Decoder):
        model.stack_experts()
    compile_steps(runner, plan, config)
    can_be_recorded = not (isinstance(model, Decoder) and model.waits_for_device)
    is_triton = uses_triton(cache_tensors(runner.kv_cache[0][0])[0])
    if config.cuda_graphs and can_be_recorded and is_triton:
        runner.graphs = DecodeGraphs(
            model,
            runner.kv_cache,
            plan.groups,
            padding_blocks=plan.num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=plan.max_model_len,
            capture=CudaCapture(model.device),
        )
        runner.graphs.capture_all()


@torch.inference_mode()
def compile_steps(runner: ModelRunner, plan: KVPlan, config: EngineConfig) -> None:
    """Run chunks of prompts and batches of decodes of all sizes, and every way to sample."""
    longest = min(config.max_chunk, plan.max_model_len)
    for size in sorted({longest, *(1 << i for i in range(longest.bit_length()))}):
        _run(runner, plan, (size,))
    for size in decode_buckets(config.max_num_seqs):
        logits = _run(runner, plan, (1,) * size)
    for row in _SAMPLING_ROWS:
        sample_async(logits, [row]).read()


def _run(runner: ModelRunner, plan: KVPlan, query_lens: tuple[int, ...]) -> torch.Tensor:
    """Compute new sequences of token 0 within the padding blocks; logits [1, V]."""
    model, size = runner.model, runner.block_size
    width = -(-max(query_lens) // size)
    positions = np.concatenate([np.arange(n) for n in query_lens])
    layers: dict[int, AttentionMetadata] = {}
    for group, block in zip(plan.groups, plan.num_blocks, strict=True):
        metadata = AttentionMetadata(
            query_lens,
            query_lens,
            to_device(block * size + positions % size, model.device),
            to_device(np.full((len(query_lens), width), block, dtype=np.int32), model.device),
            size,
            group.window,
            group.num_sinks,
        )
        layers |= dict.fromkeys(group.layers, metadata)
    metadata = AttentionMetadata(
        query_lens,
        query_lens,
        layers[0].slot_mapping,
        layers[0].block_tables,
        size,
        per_layer=tuple(layers[layer] for layer in sorted(layers)),
    )
    hidden = model.forward(
        to_device(np.zeros(len(positions), dtype=np.int64), model.device),
        to_device(positions, model.device),
        metadata,
        runner.kv_cache,
    )
    return model.compute_sampling_logits(hidden[-1:])
