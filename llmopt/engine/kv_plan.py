"""How the cache is laid out for a model: layer groups, blocks of each, and their form.

Knows nothing about requests; allocates nothing.
Law: the plan is what the engine allocates, byte by byte.
"""

from dataclasses import dataclass

import torch

from llmopt.engine.config import EngineConfig
from llmopt.engine.kv_cache import (
    KVLayout,
    choose_layout,
    choose_num_blocks,
    fill_memory,
    most_useful_blocks,
)
from llmopt.engine.layer_group import LayerGroup, group_layers
from llmopt.errors import EngineError, UsageError
from llmopt.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KVPlan:
    """The cache of an engine. `num_host_blocks` is empty where nothing is swapped."""

    groups: tuple[LayerGroup, ...]
    num_blocks: tuple[int, ...]
    num_host_blocks: tuple[int, ...]
    layout: KVLayout
    max_model_len: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in every layer."""
        return self.layout.block_bytes * sum(len(group.layers) for group in self.groups)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache on the device."""
        blocks = zip(self.groups, self.num_blocks, strict=True)
        return self.layout.block_bytes * sum(len(group.layers) * n for group, n in blocks)


def plan_kv(
    model: ModelConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> KVPlan:
    """The plan for a model with activations of `dtype` on `device`.

    Raises:
        UsageError: `max_model_len` is beyond the model's.
        EngineError: the memory, or that of the host for swapping, does not hold one block.
    """
    max_model_len = _limit_model_len(config.max_model_len, model.max_model_len)
    windows = [layer.window for layer in model.layers]
    if config.policy == "static":  # contiguous rows: nothing is freed before the end
        windows = [None] * len(windows)
    groups = group_layers(windows, config.attention_window, config.sink_tokens)
    layout = choose_layout(model, config.block_size, config.kv_dtype, dtype)
    most = most_useful_blocks(
        groups,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        max_chunk=config.max_chunk,
    )
    num_blocks = choose_num_blocks(
        groups,
        most,
        layer_block_bytes=layout.block_bytes,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        kv_memory_bytes=config.kv_memory_bytes,
        device=device,
    )
    num_host_blocks: list[int] = []
    if config.preemption == "swap":
        costs = [len(group.layers) * layout.block_bytes for group in groups]
        num_host_blocks = fill_memory(config.host_memory_bytes, costs, num_blocks)
        if min(num_host_blocks) < 1:
            raise EngineError(
                f"host_memory_bytes is {config.host_memory_bytes}, and one block of every layer"
                f" takes {sum(costs)}",
                "Give more, or preempt by recompute.",
            )
    return KVPlan(groups, tuple(num_blocks), tuple(num_host_blocks), layout, max_model_len)


def _limit_model_len(asked: int | None, model_len: int) -> int:
    if asked is None:
        return model_len
    if asked > model_len:
        raise UsageError(
            f"max_model_len is {asked} and the model's limit is {model_len}",
            f"Give at most {model_len}, or leave it out.",
        )
    return asked
