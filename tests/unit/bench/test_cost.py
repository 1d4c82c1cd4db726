import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmopt.bench.cost import cost_model
from llmopt.bench.examine import examine_weights
from llmopt.bench.loaded import LoadedModels
from llmopt.bench.prepare import PreparedTarget
from llmopt.bench.work import moved_bytes, useful_flops
from llmopt.engine.config import EngineConfig
from llmopt.models.loader import load_model
from llmopt.recipe.engine import EngineSettings
from llmopt.recipe.schema import Target
from llmopt.results.schema import WindowedLayers


@pytest.mark.parametrize("tied", [True, False])
def test_cost_counts_the_weights_that_the_model_really_has(make_tiny_llama, tied):
    model = load_model(make_tiny_llama(tie_word_embeddings=tied), dtype="float32")
    cost = cost_model(
        model.config, weight_bytes=model.weight_bytes, dtype=torch.float32, engine=EngineConfig()
    )
    linears = [linear for block in model.blocks for linear in block.linears]
    weights = sum(linear.in_features * linear.out_features for linear in linears)
    head = model.lm_head.in_features * model.lm_head.out_features
    assert cost.flops_per_token_linear == 2 * weights
    assert cost.flops_lm_head == 2 * head
    assert cost.weight_bytes == 4 * (weights + head)


def test_attention_and_cache_by_hand(make_tiny_llama):
    model = load_model(make_tiny_llama(), dtype="bfloat16")  # 2 layers, 4 heads of 16, 2 kv heads
    cost = cost_model(model.config, weight_bytes=1, dtype=model.dtype, engine=EngineConfig())
    assert cost.flops_attention_per_token_per_context == 2 * 2 * (4 * 16) * 2
    assert cost.kv_bytes_per_token == 2 * 2 * (2 * 16) * 2


def test_layers_with_a_window_are_counted_apart(make_tiny_model):
    model = load_model(make_tiny_model("gemma3_text"), dtype="float32")  # 3 layers, 2 of window 9
    cost = cost_model(model.config, weight_bytes=1, dtype=torch.float32, engine=EngineConfig())
    query_width, kv_width = 4 * 32, 2 * 32
    assert cost.flops_attention_per_token_per_context == 4 * query_width
    assert cost.kv_bytes_per_token == 2 * kv_width * 4
    assert cost.windowed_layers == (WindowedLayers(9, 2 * 4 * query_width, 2 * 2 * kv_width * 4),)


@pytest.mark.parametrize(
    ("kv_dtype", "per_head"), [("auto", 16 * 2), ("fp8", 16), ("int8", 16 + 2)]
)
def test_the_cache_has_the_bytes_in_which_the_engine_keeps_it(make_tiny_llama, kv_dtype, per_head):
    model = load_model(make_tiny_llama(), dtype="bfloat16")
    engine = EngineConfig(kv_dtype=kv_dtype)
    cost = cost_model(model.config, weight_bytes=1, dtype=model.dtype, engine=engine)
    assert cost.kv_bytes_per_token == 2 * 2 * 2 * per_head


def test_the_window_of_the_engine_caps_what_every_layer_sees(make_tiny_model):
    model = load_model(make_tiny_model("gemma3_text"), dtype="float32")  # 3 layers, 2 of window 9
    per_layer = 4 * 4 * 32, 2 * 2 * 32 * 4

    def windows(engine: EngineConfig) -> list[tuple[int, int]]:
        cost = cost_model(model.config, weight_bytes=1, dtype=model.dtype, engine=engine)
        full = round(cost.kv_bytes_per_token / per_layer[1])
        assert cost.flops_attention_per_token_per_context == full * per_layer[0]
        found = [(0, full)] if full else []
        for layers in cost.windowed_layers:
            count = layers.kv_bytes_per_token // per_layer[1]
            assert layers.flops_attention_per_token_per_context == count * per_layer[0]
            found.append((layers.window, count))
        return found

    assert windows(EngineConfig()) == [(0, 1), (9, 2)]
    assert windows(EngineConfig(attention_window=20, sink_tokens=4)) == [(9, 2), (24, 1)]
    assert windows(EngineConfig(attention_window=5, sink_tokens=4)) == [(9, 3)]
    assert windows(EngineConfig(attention_window=5)) == [(5, 3)]


def test_a_target_has_the_cost_of_its_own_engine(tiny_model_path):
    models = LoadedModels.on("cpu")
    costs = []
    for settings in (None, EngineSettings(kv_dtype="int8", attention_window=64, sink_tokens=4)):
        target = Target("t", str(tiny_model_path), engine=settings)
        prepared = PreparedTarget(target, tiny_model_path, "0", None, None)
        costs.append(examine_weights(prepared, models)[1])
    assert costs[0].kv_bytes_per_token > 0
    assert costs[0].windowed_layers == ()
    assert costs[1].kv_bytes_per_token == 0
    (layers,) = costs[1].windowed_layers
    assert layers.window == 68
    assert 0.5 < layers.kv_bytes_per_token / costs[0].kv_bytes_per_token < 1


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_flops_agree_with_the_counter_of_torch(make_tiny_model, make, architecture):
    """One prompt of P tokens through the reference model, every position through the lm_head.

    The reference computes the whole P x P scores; we count what a token sees: P (P + 1) / 2.
    """
    from transformers import AutoModelForCausalLM

    path, length = make_tiny_model(architecture), 24
    ours = load_model(path, dtype="float32")
    cost = cost_model(ours.config, weight_bytes=1, dtype=torch.float32, engine=EngineConfig())
    reference = AutoModelForCausalLM.from_pretrained(
        path, dtype="float32", attn_implementation="eager"
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        reference(torch.arange(length).unsqueeze(0), use_cache=False)
    request = make.request(token_times_s=(1.0,), num_prompt_tokens=length)
    ours_flops = useful_flops([request], cost)
    seen = cost.flops_attention_per_token_per_context
    expected = ours_flops + (length - 1) * cost.flops_lm_head
    expected += (length * length - length * (length + 1) // 2) * seen
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_bytes_agree_with_the_tensors_that_a_step_reads(make_tiny_model, make, architecture):
    """The weights and the cache of the reference model, by the sizes of its own tensors."""
    from transformers import AutoModelForCausalLM

    path, length = make_tiny_model(architecture), 24
    ours = load_model(path, dtype="float32")
    cost = cost_model(
        ours.config,
        weight_bytes=ours.weight_bytes_per_token,
        dtype=torch.float32,
        engine=EngineConfig(),
    )
    reference = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    with torch.no_grad():
        cache = reference(torch.arange(length).unsqueeze(0)).past_key_values
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    read = {
        parameter.data_ptr(): parameter.nbytes
        for name, parameter in reference.named_parameters()
        if "embed_tokens" not in name and "norm" not in name and not name.endswith("bias")
    }
    head = reference.lm_head.weight
    read[head.data_ptr()] = head.nbytes
    request = make.request(token_times_s=(1.0,), num_prompt_tokens=length)
    # one step writes the keys and values of the prompt and reads them
    expected = sum(read.values()) + 2 * cached
    assert moved_bytes([request], 1, cost) == pytest.approx(expected, rel=0.01)
