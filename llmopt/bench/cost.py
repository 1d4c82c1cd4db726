"""What one token costs, exactly: the coefficients behind MFU and MBU.

Knows nothing about events or ceilings. The laws: useful work only: embedding look-ups and
element-wise operations are not counted, the lm_head is (tied or not), and no sparsity or padding is
assumed; the cache is as the engine keeps it.
"""

from collections import Counter

import torch

from llmopt.engine.config import EngineConfig
from llmopt.engine.kv_cache import choose_layout
from llmopt.engine.layer_group import group_layers
from llmopt.models.config import ModelConfig
from llmopt.results.schema import CostModel, WindowedLayers


def cost_model(
    config: ModelConfig, *, weight_bytes: int, dtype: torch.dtype, engine: EngineConfig
) -> CostModel:
    """FLOPs and bytes of a decoder model with activations of `dtype`, served by `engine`.

    2 FLOPs per weight and token in the linear layers; 2*H*D for the scores and 2*H*D for the
    weighted sum of the values, per token, context token and layer; keys and values of KH*D elements
    each, per token and layer, and their scales; layers with a sliding window apart, be it the
    model's or the engine's with its sinks. `weight_bytes`: what one decode step of one token reads,
    as stored in memory (`Decoder.weight_bytes_per_token`): with experts a lower bound for larger
    batches.
    """
    query_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    weights_per_layer = (
        config.hidden_size * (query_width + 2 * kv_width)  # q, k, v
        + query_width * config.hidden_size  # output
        + config.mlp_weights_per_token
    )
    flops = 4 * query_width  # of a layer's attention, as the bytes
    kv_bytes = choose_layout(config, 1, engine.kv_dtype, dtype).block_bytes
    groups = group_layers(
        [layer.window for layer in config.layers], engine.attention_window, engine.sink_tokens
    )
    windows: Counter[int] = Counter()
    for group in groups:
        if group.window is not None:
            windows[group.window + group.num_sinks] += len(group.layers)
    num_full = config.num_layers - windows.total()
    return CostModel(
        flops_per_token_linear=2 * weights_per_layer * config.num_layers,
        flops_lm_head=2 * config.hidden_size * config.vocab_size,
        flops_attention_per_token_per_context=flops * num_full,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes * num_full,
        windowed_layers=tuple(
            WindowedLayers(window, flops * count, kv_bytes * count)
            for window, count in sorted(windows.items())
        ),
    )
