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

FULL, SLIDING = "full_attention", "sliding_attention"
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The parts of a decoder.

    defaults:         values that config.json may leave out
    activation_key:   where config.json names the activation of the gate
    query_scalar_key: where it has the number whose root divides the attention scores
    bias_keys:        which of attention_bias and mlp_bias it may switch on
    qkv_bias:         q, k and v have biases, whatever config.json says
    head_norms:       q and k are normalized per head
    branch_norms:     the outputs of attention and MLP are normalized before they are added
    norm_offset:      what is added to the stored weights of norms
    scaled_embedding: embeddings are multiplied with the root of their width
    separate_ropes:   sliding layers have a rotary base of their own
    layer_kinds:      FULL or SLIDING for each of so many layers, where config.json lists none
    refused_keys:     features that are not computed here
    """

    defaults: Settings = field(default_factory=lambda: MappingProxyType({}))
    activation_key: str = "hidden_act"
    query_scalar_key: str = "head_dim"
    bias_keys: tuple[str, ...] = ()
    qkv_bias: bool = False
    head_norms: bool = False
    branch_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    separate_ropes: bool = False
    layer_kinds: Callable[[Settings, int], list[str]] | None = None
    refused_keys: tuple[str, ...] = ()


def _qwen_layer_kinds(settings: Settings, num_layers: int) -> list[str]:
    """The last layers slide, if any do."""
    slides = settings.get("use_sliding_window") and settings.get("sliding_window") is not None
    first = int(settings["max_window_layers"]) if slides else num_layers
    return [FULL if layer < first else SLIDING for layer in range(num_layers)]


def _gemma_layer_kinds(settings: Settings, num_layers: int) -> list[str]:
    """Every n-th layer sees everything."""
    period = int(settings["sliding_window_pattern"])
    return [SLIDING if (layer + 1) % period else FULL for layer in range(num_layers)]


_QWEN_DEFAULTS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "LlamaForCausalLM": Architecture(bias_keys=("attention_bias", "mlp_bias")),
        "Qwen2ForCausalLM": Architecture(
            defaults=_QWEN_DEFAULTS, qkv_bias=True, layer_kinds=_qwen_layer_kinds
        ),
        "Qwen3ForCausalLM": Architecture(
            defaults={**_QWEN_DEFAULTS, "head_dim": 128},
            bias_keys=("attention_bias",),
            head_norms=True,
            layer_kinds=_qwen_layer_kinds,
        ),
        "Gemma3ForCausalLM": Architecture(
            defaults={
                "head_dim": 256,
                "hidden_activation": "gelu_pytorch_tanh",
                "max_position_embeddings": 131_072,
                "query_pre_attn_scalar": 256,
                "rms_norm_eps": 1e-6,
                "rope_local_base_freq": 10_000.0,
                "rope_theta": 1_000_000.0,
                "sliding_window": 4096,
                "sliding_window_pattern": 6,
                "tie_word_embeddings": True,
                "use_sliding_window": True,
            },
            activation_key="hidden_activation",
            query_scalar_key="query_pre_attn_scalar",
            bias_keys=("attention_bias",),
            head_norms=True,
            branch_norms=True,
            norm_offset=1.0,
            scaled_embedding=True,
            separate_ropes=True,
            layer_kinds=_gemma_layer_kinds,
            refused_keys=(
                "attn_logit_softcapping",
                "final_logit_softcapping",
                "use_bidirectional_attention",
            ),
        ),
    }
)
