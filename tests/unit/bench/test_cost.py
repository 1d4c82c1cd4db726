import pytest

from llmopt.bench.cost import cost_model
from llmopt.models.loader import load_model
from llmopt.results.schema import WindowedLayers


@pytest.mark.parametrize("tied", [True, False])
def test_cost_counts_the_weights_that_the_model_really_has(make_tiny_llama, tied):
    model = load_model(make_tiny_llama(tie_word_embeddings=tied), dtype="float32")
    cost = cost_model(model.config, weight_bytes=model.weight_bytes, kv_element_bytes=4)
    linears = [linear for block in model.blocks for linear in block.linears]
    weights = sum(linear.in_features * linear.out_features for linear in linears)
    head = model.lm_head.in_features * model.lm_head.out_features
    assert cost.flops_per_token_linear == 2 * weights
    assert cost.flops_lm_head == 2 * head
    assert cost.weight_bytes == 4 * (weights + head)


def test_attention_and_cache_by_hand(make_tiny_llama):
    model = load_model(make_tiny_llama(), dtype="bfloat16")  # 2 layers, 4 heads of 16, 2 kv heads
    cost = cost_model(model.config, weight_bytes=1, kv_element_bytes=model.dtype.itemsize)
    assert cost.flops_attention_per_token_per_context == 2 * 2 * (4 * 16) * 2
    assert cost.kv_bytes_per_token == 2 * 2 * (2 * 16) * 2


def test_layers_with_a_window_are_counted_apart(make_tiny_model):
    model = load_model(make_tiny_model("gemma3_text"), dtype="float32")  # 3 layers, 2 of window 9
    cost = cost_model(model.config, weight_bytes=1, kv_element_bytes=4)
    query_width, kv_width = 4 * 32, 2 * 32
    assert cost.flops_attention_per_token_per_context == 4 * query_width
    assert cost.kv_bytes_per_token == 2 * kv_width * 4
    assert cost.windowed_layers == (WindowedLayers(9, 2 * 4 * query_width, 2 * 2 * kv_width * 4),)
