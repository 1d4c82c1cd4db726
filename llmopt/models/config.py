"""The facts of a decoder model, from a Hugging Face config.json.

The law: a config that is accepted describes a model that the runtime computes exactly; everything
else is refused with a sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmopt.errors import ModelError
from llmopt.layers.rotary import SUPPORTED_ROPE_TYPES
from llmopt.models.architectures import ARCHITECTURES, FULL, SLIDING, Architecture, Settings

Activation = Literal["silu", "gelu_pytorch_tanh"]
SUPPORTED_ARCHITECTURES = tuple(ARCHITECTURES)
SUPPORTED_ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_pytorch_tanh")
_DAMAGED = "config.json is damaged; fetch the model again."


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary embedding: its base, and the rule that stretches it (None: none)."""

    theta: float
    scaling: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """How one layer attends: which of the model's ropes it uses, and its window.

    With a window, a token sees itself and the window - 1 tokens before it.
    """

    rope: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes, parts and constants of a decoder; `architectures.Architecture` explains the parts."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    ropes: tuple[Rope, ...]
    layers: tuple[LayerAttention, ...]
    max_model_len: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str
    attention_scale: float
    activation: Activation = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    branch_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float | None = None

    @classmethod
    def from_hf(cls, config: Settings) -> "ModelConfig":
        """Read config.json; ModelError for an unknown architecture, activation or rope type."""
        name = _architecture(config)
        try:
            return _read(name, ARCHITECTURES[name], {**ARCHITECTURES[name].defaults, **config})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"config.json lacks a usable value for {error}", "Fetch the model again."
            ) from error

    @property
    def mlp_norm_name(self) -> str:
        """What checkpoints call the norm before the MLP, within a block."""
        return "pre_feedforward_layernorm" if self.branch_norms else "post_attention_layernorm"


def _read(name: str, parts: Architecture, settings: Settings) -> ModelConfig:
    _refuse_features(parts, settings)
    num_heads, hidden_size = int(settings["num_attention_heads"]), int(settings["hidden_size"])
    head_dim = int(settings.get("head_dim") or hidden_size // num_heads)
    biases = {key: bool(settings.get(key, False)) for key in parts.bias_keys}
    result = ModelConfig(
        architecture=name,
        vocab_size=int(settings["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=int(settings["intermediate_size"]),
        num_layers=int(settings["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=int(settings.get("num_key_value_heads") or num_heads),
        head_dim=head_dim,
        rms_norm_eps=float(settings["rms_norm_eps"]),
        ropes=_ropes(parts, settings),
        layers=_layers(parts, settings),
        max_model_len=int(settings["max_position_embeddings"]),
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
        bos_token_id=_optional_int(settings.get("bos_token_id")),
        eos_token_ids=_token_ids(settings.get("eos_token_id")),
        dtype=str(settings.get("dtype") or settings.get("torch_dtype") or "float32"),
        attention_scale=float(settings.get(parts.query_scalar_key) or head_dim) ** -0.5,
        activation=_activation(settings.get(parts.activation_key, "silu")),
        qkv_bias=parts.qkv_bias or biases.get("attention_bias", False),
        output_bias=biases.get("attention_bias", False),
        mlp_bias=biases.get("mlp_bias", False),
        head_norms=parts.head_norms,
        branch_norms=parts.branch_norms,
        norm_offset=parts.norm_offset,
        embedding_scale=hidden_size**0.5 if parts.scaled_embedding else None,
    )
    if result.num_heads % result.num_kv_heads:
        raise ModelError(
            f"{num_heads} query heads cannot share {result.num_kv_heads} key/value heads", _DAMAGED
        )
    return result


def _architecture(config: Settings) -> str:
    names = config.get("architectures") or ["(none named)"]
    if names[0] not in ARCHITECTURES:
        raise ModelError(
            f"the architecture {names[0]} is not supported",
            f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)}.",
        )
    return str(names[0])


def _refuse_features(parts: Architecture, settings: Settings) -> None:
    for key in parts.refused_keys:
        if settings.get(key):
            raise ModelError(
                f"the model uses {key} ({settings[key]}), which is not supported",
                f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)} without it.",
            )


def _activation(name: object) -> Activation:
    if name not in SUPPORTED_ACTIVATIONS:
        raise ModelError(
            f"the activation {name} is not supported",
            f"Supported: {', '.join(SUPPORTED_ACTIVATIONS)}.",
        )
    return name


def _ropes(parts: Architecture, settings: Settings) -> tuple[Rope, ...]:
    """One rope, or that of FULL and that of SLIDING layers.

    transformers 5 keeps theta and scaling in `rope_parameters` (per kind of layer where those
    differ), older files apart.
    """
    parameters = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or {}
    theta = settings.get("rope_theta") or 10_000.0
    if not parts.separate_ropes:
        return (_rope(parameters or scaling, theta),)
    return (
        _rope(parameters.get(FULL) or scaling, theta),
        _rope(parameters.get(SLIDING) or {}, settings["rope_local_base_freq"]),
    )


def _rope(parameters: Settings, default_theta: float) -> Rope:
    theta = float(parameters.get("rope_theta") or default_theta)
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise ModelError(
            f"the rotary embedding type {rope_type} is not supported",
            f"Supported: {', '.join(SUPPORTED_ROPE_TYPES)}.",
        )
    return Rope(theta, None if rope_type == "default" else {**parameters, "rope_type": rope_type})


def _layers(parts: Architecture, settings: Settings) -> tuple[LayerAttention, ...]:
    num_layers = int(settings["num_hidden_layers"])
    kinds = [FULL] * num_layers
    if parts.layer_kinds is not None:
        kinds = settings.get("layer_types") or parts.layer_kinds(settings, num_layers)
    if len(kinds) != num_layers or not {FULL, SLIDING}.issuperset(kinds):
        raise ModelError(
            f"config.json has layer_types {', '.join(sorted(set(map(str, kinds))))} for"
            f" {len(kinds)} of {num_layers} layers",
            f"Supported: {FULL} and {SLIDING}, one for each layer.",
        )
    window = settings.get("sliding_window") if settings.get("use_sliding_window") else None
    if SLIDING in kinds and not (isinstance(window, int) and window > 0):
        raise ModelError(f"config.json has sliding layers and the window {window}", _DAMAGED)
    return tuple(
        LayerAttention(
            rope=1 if parts.separate_ropes and kind == SLIDING else 0,
            window=window if kind == SLIDING else None,
        )
        for kind in kinds
    )


def _optional_int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, list) else ()
