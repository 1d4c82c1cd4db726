"""The facts of a decoder model, from a Hugging Face config.json.

The law: a config that is accepted describes a model that the runtime computes exactly; everything
else is refused with a sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.errors import ModelError
from llmopt.layers.rotary import SUPPORTED_ROPE_TYPES

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a Llama-family decoder."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    max_model_len: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Read config.json; ModelError for an unknown architecture, activation or rope type."""
        architecture = _architecture(config)
        _require_silu(config)
        try:
            return _llama_config(architecture, config)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"config.json lacks a usable value for {error}", "Fetch the model again."
            ) from error


def _llama_config(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    num_heads, hidden_size = int(config["num_attention_heads"]), int(config["hidden_size"])
    theta, scaling = _rope(config)
    result = ModelConfig(
        architecture=architecture,
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=int(config["intermediate_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        head_dim=int(config.get("head_dim") or hidden_size // num_heads),
        rms_norm_eps=float(config["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        max_model_len=int(config["max_position_embeddings"]),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        bos_token_id=_optional_int(config.get("bos_token_id")),
        eos_token_ids=_token_ids(config.get("eos_token_id")),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )
    if result.num_heads % result.num_kv_heads:
        raise ModelError(
            f"{num_heads} query heads cannot share {result.num_kv_heads} key/value heads",
            "config.json is damaged; fetch the model again.",
        )
    return result


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or ["(none named)"]
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"the architecture {names[0]} is not supported",
            f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)}.",
        )
    return str(names[0])


def _require_silu(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(
            f"the activation {activation} is not supported in this architecture",
            "Supported: silu.",
        )


def _rope(config: Mapping[str, Any]) -> tuple[float, Mapping[str, Any] | None]:
    """(theta, scaling): transformers 5 keeps both in `rope_parameters`, older files apart."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise ModelError(
            f"the rotary embedding type {rope_type} is not supported",
            f"Supported: {', '.join(SUPPORTED_ROPE_TYPES)}.",
        )
    return theta, None if rope_type == "default" else {**parameters, "rope_type": rope_type}


def _optional_int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, list) else ()
