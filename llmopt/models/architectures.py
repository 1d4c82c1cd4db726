"""What sets the supported decoder architectures apart where config.json does not say it.

One row per architecture: the parts that its blocks have, and what config.json may leave out. Knows
nothing of tensors. The law: whatever differs between architectures is a value in this table, never
a branch on a name.

Source: the model and config classes of transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from llmopt.models.module_names import (
    GPT2_NAMES,
    LLAMA_NAMES,
    MIXTRAL_NAMES,
    OPT_NAMES,
    PHI3_NAMES,
    QWEN_MOE_NAMES,
    SANDWICH_NAMES,
    ModuleNames,
)

FULL, SLIDING = "full_attention", "sliding_attention"
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The parts of a decoder.

    names:            of its modules in a checkpoint
    defaults:         values that config.json may leave out
    keys:             where config.json has what is read under another key; the first one holds.
                      Llama's keys are read, and attention_soft_cap, logit_soft_cap (the tanh that
                      scores or logits are bent by) and query_scalar (the number whose root divides
                      the attention scores)
    bias_keys:        which of attention_bias and mlp_bias it may switch on
    qkv_bias:         q, k and v have biases, whatever config.json says
    gated:            the MLP has a gate
    layer_norm:       norms subtract the mean and have a bias
    head_norms:       q and k are normalized per head
    branch_norms:     the outputs of attention and MLP are normalized before they are added
    norm_offset:      what is added to the stored weights of norms
    scaled_embedding: embeddings are multiplied with the root of their width
    first_position:   positions are learned, and position 0 is this row of their table
    transposed:       linear weights are stored as [K, O]
    separate_ropes:   sliding layers have a rotary base of their own
    rope_types:       what config.json calls other rotary rules than they are
    layer_kinds:      FULL or SLIDING for each of so many layers, where config.json lists none
    rotates:          which of so many layers have rotary positions; None: all of them
    experts:          the MLP is a mixture of experts
    normalized:       the weights of a token's experts add up to 1, whatever config.json says
    refused_keys:     features that are not computed here
    required_keys:    features without which it is not computed here, if config.json has the key
    """

    names: ModuleNames = LLAMA_NAMES
    defaults: Settings = field(default_factory=lambda: MappingProxyType({}))
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    bias_keys: tuple[str, ...] = ()
    qkv_bias: bool = False
    gated: bool = True
    layer_norm: bool = False
    head_norms: bool = False
    branch_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    first_position: int | None = None
    transposed: bool = False
    separate_ropes: bool = False
    rope_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    layer_kinds: Callable[[Settings, int], list[str]] | None = None
    rotates: Callable[[Settings, int], list[bool]] | None = None
    experts: bool = False
    normalized: bool = False
    refused_keys: tuple[str, ...] = ()
    required_keys: tuple[str, ...] = ()


def _qwen_layer_kinds(settings: Settings, num_layers: int) -> list[str]:
    """The last layers slide, if any do."""
    slides = settings.get("use_sliding_window") and settings.get("sliding_window") is not None
    first = int(settings["max_window_layers"]) if slides else num_layers
    return [FULL if layer < first else SLIDING for layer in range(num_layers)]


def _alternating_kinds(settings: Settings, num_layers: int) -> list[str]:
    """Every n-th layer sees everything."""
    period = int(settings["sliding_window_pattern"])
    return [SLIDING if (layer + 1) % period else FULL for layer in range(num_layers)]


def _equal_kinds(settings: Settings, num_layers: int) -> list[str]:
    """All layers slide, or none."""
    slides = settings.get("use_sliding_window") and settings.get("sliding_window") is not None
    return [SLIDING if slides else FULL] * num_layers


def _kinds_by_position(settings: Settings, num_layers: int) -> list[str]:
    """Layers without rotary positions slide, if any do."""
    slides = settings.get("use_sliding_window") and settings.get("sliding_window") is not None
    rotates = _some_rotate(settings, num_layers)
    return [SLIDING if slides and not rotated else FULL for rotated in rotates]


def _some_rotate(settings: Settings, num_layers: int) -> list[bool]:
    """Listed by config.json, or all but every n-th layer."""
    listed = settings.get("no_rope_layers")
    if listed is None:
        period = int(settings["no_rope_layer_interval"])
        return [(layer + 1) % period != 0 for layer in range(num_layers)]
    return [bool(listed[layer]) for layer in range(num_layers)]


_QWEN_DEFAULTS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "use_sliding_window": True,
}
_GEMMA_KEYS = {
    "hidden_act": ("hidden_activation",),
    "logit_soft_cap": ("final_logit_softcapping",),
    "query_scalar": ("query_pre_attn_scalar",),
}
_EXPERT_KEYS = {"num_experts": ("num_local_experts",)}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "LlamaForCausalLM": Architecture(bias_keys=("attention_bias", "mlp_bias")),
        "MistralForCausalLM": Architecture(
            defaults={"sliding_window": 4096, "use_sliding_window": True, "rms_norm_eps": 1e-6},
            layer_kinds=_equal_kinds,
            refused_keys=("layer_types",),
        ),
        "SmolLM3ForCausalLM": Architecture(
            defaults={
                "max_position_embeddings": 32_768,
                "no_rope_layer_interval": 4,
                "num_key_value_heads": 4,
                "rms_norm_eps": 1e-6,
                "rope_theta": 2_000_000.0,
                "tie_word_embeddings": True,
                "use_sliding_window": False,
            },
            bias_keys=("attention_bias", "mlp_bias"),
            layer_kinds=_kinds_by_position,
            rotates=_some_rotate,
        ),
        "Qwen2ForCausalLM": Architecture(
            defaults=_QWEN_DEFAULTS, qkv_bias=True, layer_kinds=_qwen_layer_kinds
        ),
        "Qwen3ForCausalLM": Architecture(
            defaults={**_QWEN_DEFAULTS, "head_dim": 128},
            bias_keys=("attention_bias",),
            head_norms=True,
            layer_kinds=_qwen_layer_kinds,
        ),
        "Qwen3MoeForCausalLM": Architecture(
            names=QWEN_MOE_NAMES,
            defaults={
                **_QWEN_DEFAULTS,
                "moe_intermediate_size": 768,
                "norm_topk_prob": False,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "rms_norm_eps": 1e-6,
            },
            keys={**_EXPERT_KEYS, "intermediate_size": ("moe_intermediate_size",)},
            bias_keys=("attention_bias",),
            head_norms=True,
            layer_kinds=_equal_kinds,
            experts=True,
            refused_keys=("mlp_only_layers", "layer_types"),
        ),
        "MixtralForCausalLM": Architecture(
            names=MIXTRAL_NAMES,
            defaults={
                "num_experts_per_tok": 2,
                "num_local_experts": 8,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1_000_000.0,
                "sliding_window": None,
                "use_sliding_window": True,
            },
            keys=_EXPERT_KEYS,
            layer_kinds=_equal_kinds,
            experts=True,
            normalized=True,
            refused_keys=("layer_types",),
        ),
        "Gemma2ForCausalLM": Architecture(
            names=SANDWICH_NAMES,
            defaults={
                **_GEMMA_DEFAULTS,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "max_position_embeddings": 8192,
                "sliding_window_pattern": 2,
            },
            keys={**_GEMMA_KEYS, "attention_soft_cap": ("attn_logit_softcapping",)},
            bias_keys=("attention_bias",),
            branch_norms=True,
            norm_offset=1.0,
            scaled_embedding=True,
            layer_kinds=_alternating_kinds,
            refused_keys=("use_bidirectional_attention",),
        ),
        "Gemma3ForCausalLM": Architecture(
            names=SANDWICH_NAMES,
            defaults={
                **_GEMMA_DEFAULTS,
                "max_position_embeddings": 131_072,
                "rope_local_base_freq": 10_000.0,
                "rope_theta": 1_000_000.0,
                "sliding_window_pattern": 6,
            },
            keys=_GEMMA_KEYS,
            bias_keys=("attention_bias",),
            head_norms=True,
            branch_norms=True,
            norm_offset=1.0,
            scaled_embedding=True,
            separate_ropes=True,
            layer_kinds=_alternating_kinds,
            refused_keys=("attn_logit_softcapping", "use_bidirectional_attention"),
        ),
        "Phi3ForCausalLM": Architecture(
            names=PHI3_NAMES,
            defaults={
                "original_max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "sliding_window": None,
                "use_sliding_window": True,
            },
            rope_types={"su": "longrope", "yarn": "longrope"},
            layer_kinds=_equal_kinds,
            refused_keys=("layer_types",),
        ),
        "OPTForCausalLM": Architecture(
            names=OPT_NAMES,
            defaults={
                "activation_function": "relu",
                "enable_bias": True,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": True,
            },
            keys={
                "attention_bias": ("enable_bias",),
                "hidden_act": ("activation_function",),
                "intermediate_size": ("ffn_dim",),
                "mlp_bias": ("enable_bias",),
            },
            bias_keys=("attention_bias", "mlp_bias"),
            gated=False,
            layer_norm=True,
            first_position=2,
            refused_keys=("_remove_final_layer_norm",),
            required_keys=("do_layer_norm_before", "layer_norm_elementwise_affine"),
        ),
        "GPT2LMHeadModel": Architecture(
            names=GPT2_NAMES,
            defaults={
                "activation_function": "gelu_new",
                "attention_bias": True,
                "layer_norm_epsilon": 1e-5,
                "mlp_bias": True,
                "n_ctx": 1024,
                "tie_word_embeddings": True,
            },
            keys={
                "hidden_act": ("activation_function",),
                "hidden_size": ("n_embd",),
                "intermediate_size": ("n_inner",),
                "max_position_embeddings": ("n_positions", "n_ctx"),
                "num_attention_heads": ("n_head",),
                "num_hidden_layers": ("n_layer",),
                "rms_norm_eps": ("layer_norm_epsilon",),
            },
            bias_keys=("attention_bias", "mlp_bias"),
            gated=False,
            layer_norm=True,
            first_position=0,
            transposed=True,
            refused_keys=("scale_attn_by_inverse_layer_idx", "add_cross_attention"),
            required_keys=("scale_attn_weights",),
        ),
    }
)
