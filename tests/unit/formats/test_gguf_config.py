"""config.json becomes metadata and comes back; what has no equivalent is refused."""

from typing import Any

import pytest
from transformers import AutoConfig

from llmopt.errors import ModelError
from llmopt.formats.gguf_config import ConfigReader, metadata_of_config
from llmopt.formats.gguf_header import GgufError

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
LOCAL = {"rope_type": "default", "rope_theta": 2e4}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"head_dim": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32}),
    ("gemma2", GEMMA),
    ("gemma2", {**GEMMA, "sliding_window": 9, "attn_logit_softcapping": 20.0}),
    ("phi3", {}),
    (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e5,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    ("gemma3_text", GEMMA),
    ("gemma3_text", {**GEMMA, "sliding_window": 9, "layer_types": ["full_attention"] * 7}),
    (
        "gemma3_text",
        {
            **GEMMA,
            "layer_types": ["sliding_attention", "full_attention", *["sliding_attention"] * 5],
            "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL},
        },
    ),
]
KEPT = [
    *SIZES,
    *("head_dim", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias"),
    *("hidden_act", "hidden_activation", "rope_parameters", "query_pre_attn_scalar"),
    *("final_logit_softcapping", "attn_logit_softcapping", "layer_types"),
]


def hf_config(model_type: str, **settings: Any) -> dict[str, Any]:
    config = AutoConfig.for_model(model_type, **{**SIZES, **settings}).to_dict()
    return config | {"architectures": [CLASSES[model_type]]}


def values_of(config: dict[str, Any]) -> dict[str, Any]:
    metadata = metadata_of_config(config, file_type=1)
    ids = {"bos": "bos", "eos": "eos", "pad": "padding"}
    tokens = {f"tokenizer.ggml.{ids[k]}_token_id": config[f"{k}_token_id"] for k in ids}
    return {key: field.value for key, field in metadata.items()} | tokens


def read(values: dict[str, Any], **facts: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "vocab_size": 128,
        "tied": False,
        "scaling": None,
        "biased": frozenset(),
    }
    return ConfigReader(values).config(**{**defaults, **facts})


@pytest.mark.parametrize(("model_type", "settings"), MODELS)
def test_config_comes_back(model_type: str, settings: dict[str, Any]) -> None:
    original = hf_config(model_type, **settings)
    biased = {"attn_q"} if original.get("attention_bias") else set()
    biased |= {"ffn_gate"} if original.get("mlp_bias") else set()
    found = read(
        values_of(original), tied=original["tie_word_embeddings"], biased=frozenset(biased)
    )
    assert found["architectures"] == original["architectures"]
    restored = AutoConfig.for_model(**found).to_dict()
    for key in KEPT:
        assert restored.get(key) == original.get(key) or original.get(key) is None, key
    if "sliding_attention" in (original.get("layer_types") or []):
        assert restored["sliding_window"] == original["sliding_window"]


def test_every_layer_type_is_said_only_where_llama_cpp_would_guess_wrong() -> None:
    usual = values_of(hf_config("gemma3_text", **GEMMA))
    assert "gemma3.attention.sliding_window_pattern" not in usual
    other = values_of(
        hf_config(
            "gemma3_text", **GEMMA, layer_types=["full_attention", *["sliding_attention"] * 6]
        )
    )
    assert other["gemma3.attention.sliding_window_pattern"] == [False, *[True] * 6]


def test_old_keys_of_gemma_are_understood() -> None:
    config = hf_config("gemma3_text", **GEMMA)
    for key in ("layer_types", "rope_parameters", "_sliding_window_pattern"):
        del config[key]
    config |= {"sliding_window_pattern": 3, "rope_theta": 5e5, "rope_local_base_freq": 3e4}
    values = values_of(config)
    assert values["gemma3.rope.freq_base"] == 5e5
    assert values["gemma3.rope.freq_base_swa"] == 3e4
    assert values["gemma3.attention.sliding_window_pattern"] == [
        *(True, True, False) * 2,
        True,
    ]


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
        ("qwen3", {"attention_bias": True}, "biases in its attention"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
            "a sliding window",
        ),
        ("phi3", {"sliding_window": 100, "use_sliding_window": True}, "a sliding window"),
        ("mistral", {"sliding_window": 100, "use_sliding_window": True}, "a sliding window"),
        ("gemma2", {**GEMMA, "attn_logit_softcapping": None}, "no attn_logit_softcapping"),
        ("gemma2", {"layer_types": ["full_attention"] * 7}, "order of sliding windows"),
        (
            "llama",
            {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
            "0.5 of each head rotated",
        ),
        ("gemma3_text", {"query_pre_attn_scalar": 24}, r"the query scale 1/sqrt\(24\)"),
        ("gemma3_text", {**GEMMA, "attn_logit_softcapping": 50.0}, "soft-capped attention"),
        ("gemma3_text", {**GEMMA, "use_bidirectional_attention": True}, "in both directions"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "the rotary embedding type dynamic",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    model_type: str, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        metadata_of_config(hf_config(model_type, **settings), file_type=1)


def test_mistral_without_a_window_is_a_llama() -> None:
    config = hf_config("mistral", sliding_window=512) | {"use_sliding_window": True}  # never short
    assert read(values_of(config))["architectures"] == ["LlamaForCausalLM"]


def test_caps_and_windows_of_a_gemma_2_file_that_names_none() -> None:
    values = values_of(hf_config("gemma2", **GEMMA))
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"):
        del values[f"gemma2.{key}"]
    found = read(values)
    assert found["attn_logit_softcapping"] == 50.0
    assert found["final_logit_softcapping"] == 30.0
    assert found["sliding_window"] == 4096
    assert found["layer_types"][:2] == ["sliding_attention", "full_attention"]


def test_the_window_of_a_phi_file_is_read() -> None:
    values = values_of(hf_config("phi3")) | {"phi3.attention.sliding_window": 100}
    assert read(values)["sliding_window"] == 100


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in ("hidden_size", "num_attention_heads", "rms_norm_eps")),
        ("hidden_size", "many"),
        ("num_hidden_layers", -3),
        ("vocab_size", 1 << 40),
        ("rms_norm_eps", "small"),
        ("rope_parameters", 5),
    ],
)
def test_a_damaged_config_is_one_sentence(key: str, value: Any) -> None:
    config = hf_config("llama", head_dim=16)
    with pytest.raises(ModelError, match=r"config\.json"):
        metadata_of_config(config | {key: value}, file_type=1)
    del config[key]
    if key != "rope_parameters":
        with pytest.raises(ModelError, match=r"config\.json"):
            metadata_of_config(config, file_type=1)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("general.architecture", "mamba", "architecture is 'mamba'"),
        ("llama.block_count", "many", "'many' for llama.block_count"),
        ("llama.embedding_length", 0, "0 for llama.embedding_length"),
        ("llama.attention.head_count", [4, 4], r"\[4, 4\] for llama.attention.head_count"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "nan for"),
        ("llama.rope.dimension_count", 8, "another rope.dimension_count"),
        ("llama.attention.value_length", 8, "another attention.value_length"),
        ("llama.rope.scaling.type", "yarn", "RoPE scaling of the type 'yarn'"),
        ("tokenizer.ggml.bos_token_id", -1, "-1 as its bos token"),
    ],
)
def test_damaged_metadata_is_refused(key: str, value: Any, reason: str) -> None:
    values = values_of(hf_config("llama")) | {key: value}
    with pytest.raises(GgufError, match=reason):
        read(values)


@pytest.mark.parametrize("pattern", [0, True, "six", [True]])
def test_a_damaged_layer_pattern_is_refused(pattern: Any) -> None:
    values = values_of(hf_config("gemma3_text", **GEMMA))
    with pytest.raises(GgufError, match="pattern of sliding windows"):
        read(values | {"gemma3.attention.sliding_window_pattern": pattern})
