"""What one token costs, exactly: the coefficients behind MFU and MBU.

Knows nothing about events or ceilings. The law: useful work only. Embedding look-ups and
element-wise operations are not counted, the lm_head is (tied or not), and no sparsity or padding is
assumed.
"""

from collections import Counter

from llmopt.models.config import ModelConfig
from llmopt.results.schema import CostModel, WindowedLayers


def cost_model(config: ModelConfig, *, weight_bytes: int, kv_element_bytes: int) -> CostModel:
    """FLOPs and bytes of a decoder model.

    2 FLOPs per weight and token in the linear layers; 2*H*D for the scores and 2*H*D for the
    weighted sum of the values, per token, context token and layer; keys and values of KH*D elements
    each, per token and layer; layers with a sliding window apart. `weight_bytes`: what one decode
    step of one token reads, as stored in memory (`Decoder.weight_bytes_per_token`): with experts
    a lower bound for larger batches.
    """
    query_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    weights_per_layer = (
        config.hidden_size * (query_width + 2 * kv_width)  # q, k, v
        + query_width * config.hidden_size  # output
        + config.mlp_weights_per_token
    )
    flops, kv_bytes = 4 * query_width, 2 * kv_width * kv_element_bytes  # of a layer's attention
    windows = Counter(layer.window for layer in config.layers if layer.window is not None)
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
