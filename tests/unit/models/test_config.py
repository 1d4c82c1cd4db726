"""Damaged and hostile configs: every one is refused in a sentence, at once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import ModelError
from llmopt.models.config import ModelConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
GEMMA = LLAMA | {"architectures": ["Gemma3ForCausalLM"]}
MIXTRAL = LLAMA | {"architectures": ["MixtralForCausalLM"]}
SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), None, "many", [2], {}])
def test_sizes_are_positive_numbers(key: str, value: object) -> None:
    assert ModelConfig.from_hf(LLAMA).num_layers == 2
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.from_hf(LLAMA | {key: value})


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (LLAMA, {"num_attention_heads": 0}, "the num_attention_heads 0"),
        (LLAMA, {"num_key_value_heads": -2}, "the num_key_value_heads -2"),
        (LLAMA, {"num_attention_heads": 128, "num_key_value_heads": 128}, "the head_dim 0"),
        (LLAMA, {"head_dim": 10**12}, "the head_dim 1000000000000"),
        (LLAMA, {"num_hidden_layers": 10**9}, "the num_hidden_layers 1000000000"),
        (MIXTRAL, {"num_local_experts": 10**9}, "the num_experts 1000000000"),
        (LLAMA, {"vocab_size": float("inf")}, "the vocab_size inf"),
        (LLAMA, {"hidden_size": None}, "the hidden_size None"),
        (GEMMA, {"sliding_window_pattern": 0}, "lacks a usable value"),
        (GEMMA, {"query_pre_attn_scalar": -1}, "by the root of -1"),
        (GEMMA, {"query_pre_attn_scalar": float("nan")}, "by the root of nan"),
        (LLAMA, {"architectures": {"a": 1}}, "the architecture .none named. is not supported"),
        (LLAMA, {"architectures": [["LlamaForCausalLM"]]}, "is not supported"),
        (LLAMA, {"architectures": None}, "none named"),
        (LLAMA, {"rope_theta": -1e4}, "no finite frequency"),
    ],
)
def test_values_that_make_no_model(
    config: dict[str, Any], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        ModelConfig.from_hf(config | changes)


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear"},
        {"type": "linear", "factor": None},
        {"type": "linear", "factor": 0},
        {"type": "linear", "factor": "two"},
        {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
        {"type": "yarn", "original_max_position_embeddings": 0.5, "factor": -1, "beta_fast": "x"},
        {"type": "yarn", "original_max_position_embeddings": -64},
        {"type": "longrope"},
        {"type": "longrope", "short_factor": ["x"] * 8},
        {"type": "longrope", "short_factor": [0.0] * 8},
    ],
)
def test_a_rotary_rule_has_the_numbers_that_it_needs(scaling: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.from_hf(LLAMA | {"rope_scaling": scaling})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(key=st.sampled_from([*LLAMA, "head_dim", "rope_scaling", "rope_theta"]), value=JSON)
def test_a_config_is_read_or_refused(key: str, value: object) -> None:
    try:
        config = ModelConfig.from_hf(LLAMA | {key: value})
    except ModelError:
        return
    assert min(config.head_dim, config.num_layers, config.vocab_size) > 0
