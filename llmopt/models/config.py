"""The facts of a decoder model, from a Hugging Face config.json.

The law: a config that is accepted describes a model that the runtime computes exactly; everything
else is refused with a sentence.
"""

import math
from dataclasses import dataclass
from typing import Any

from llmopt.errors import ModelError
from llmopt.layers.activation import activations
from llmopt.layers.rotary import inverse_frequencies
from llmopt.models.architectures import ARCHITECTURES, FULL, SLIDING, Architecture, Settings
from llmopt.models.module_names import LLAMA_NAMES, ModuleNames
from llmopt.models.rope import Rope, max_positions, read_ropes

SUPPORTED_ARCHITECTURES = tuple(ARCHITECTURES)
_DAMAGED = "config.json is damaged; fetch the model again."
_MOST = 10_000  # layers, experts of a layer and channels of a head, far more than any model has


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """How one layer attends: which of the model's ropes it uses (None: none), and its window.

    With a window, a token sees itself and the window - 1 tokens before it.
    """

    rope: int | None = 0
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: how many there are, how many a token goes to, and whether the weights
    of those add up to 1.
    """

    count: int
    per_token: int
    normalized: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes, parts and constants of a decoder; `architectures.Architecture` explains the parts.

    intermediate_size: width of the MLP, or of each of the experts
    rms_norm_eps: of all norms, LayerNorms too
    first_position: the row of position 0 in the table of learned positions; None: there is none
    """

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
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    branch_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float | None = None
    names: ModuleNames = LLAMA_NAMES
    gated: bool = True
    layer_norm: bool = False
    first_position: int | None = None
    transposed: bool = False
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    experts: Experts | None = None

    @classmethod
    def from_hf(cls, config: Settings) -> "ModelConfig":
        """Read config.json; ModelError for an unknown architecture, activation or rope type, and
        for values that make no model.
        """
        name = _architecture(config)
        try:
            return _read(name, ARCHITECTURES[name], _with_llama_keys(ARCHITECTURES[name], config))
        except (
            ArithmeticError,
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            raise ModelError(
                f"config.json lacks a usable value ({error})", "Fetch the model again."
            ) from error

    @property
    def num_experts(self) -> int:
        """MLPs of a block."""
        return 1 if self.experts is None else self.experts.count

    @property
    def mlp_weights_per_token(self) -> int:
        """Weights of a block's MLP that one token is multiplied with: the router and the experts
        that it goes to.
        """
        matrices = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        if self.experts is None:
            return matrices
        return self.experts.per_token * matrices + self.experts.count * self.hidden_size


def _read(name: str, parts: Architecture, settings: Settings) -> ModelConfig:
    _refuse_features(parts, settings)
    num_heads = _size("num_attention_heads", settings["num_attention_heads"])
    num_kv_heads = settings.get("num_key_value_heads") or num_heads
    hidden_size = _size("hidden_size", settings["hidden_size"])
    head_dim = _size("head_dim", settings.get("head_dim") or hidden_size // num_heads, _MOST)
    num_layers = _size("num_hidden_layers", settings["num_hidden_layers"], _MOST)
    biases = {key: bool(settings.get(key, False)) for key in parts.bias_keys}
    ropes = read_ropes(parts, settings)
    _check_ropes(ropes, head_dim)
    result = ModelConfig(
        architecture=name,
        vocab_size=_size("vocab_size", settings["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=_intermediate_size(parts, settings),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_size("num_key_value_heads", num_kv_heads),
        head_dim=head_dim,
        rms_norm_eps=float(settings["rms_norm_eps"]),
        ropes=ropes,
        layers=_layers(parts, settings, num_layers),
        max_model_len=_size("max_position_embeddings", max_positions(ropes, settings)),
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
        bos_token_id=_optional_int(settings.get("bos_token_id")),
        eos_token_ids=_token_ids(settings.get("eos_token_id")),
        dtype=str(settings.get("dtype") or settings.get("torch_dtype") or "float32"),
        attention_scale=_attention_scale(settings.get("query_scalar") or head_dim),
        activation=_activation(settings.get("hidden_act", "silu"), parts.gated),
        qkv_bias=parts.qkv_bias or biases.get("attention_bias", False),
        output_bias=biases.get("attention_bias", False),
        mlp_bias=biases.get("mlp_bias", False),
        head_norms=parts.head_norms,
        branch_norms=parts.branch_norms,
        norm_offset=parts.norm_offset,
        embedding_scale=hidden_size**0.5 if parts.scaled_embedding else None,
        names=parts.names,
        gated=parts.gated,
        layer_norm=parts.layer_norm,
        first_position=parts.first_position,
        transposed=parts.transposed,
        attention_soft_cap=_optional_float(settings.get("attention_soft_cap")),
        logit_soft_cap=_optional_float(settings.get("logit_soft_cap")),
        experts=_experts(parts, settings),
    )
    if result.num_heads % result.num_kv_heads:
        raise ModelError(
            f"{num_heads} query heads cannot share {result.num_kv_heads} key/value heads", _DAMAGED
        )
    return result


def _architecture(config: Settings) -> str:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "(none named)"
    if name not in ARCHITECTURES:
        raise ModelError(
            f"the architecture {name} is not supported",
            f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)}.",
        )
    return name


def _with_llama_keys(parts: Architecture, config: Settings) -> dict[str, Any]:
    """config.json with its defaults, and under Llama's keys what it has under others."""
    settings = {**parts.defaults, **config}
    for key, others in parts.keys.items():
        found = [settings[other] for other in others if settings.get(other) is not None]
        if found:
            settings[key] = found[0]
    return settings


def _refuse_features(parts: Architecture, settings: Settings) -> None:
    refused = [key for key in parts.refused_keys if settings.get(key)]
    missing = [key for key in parts.required_keys if not settings.get(key, True)]
    sparse_step = settings.get("decoder_sparse_step", 1)
    if parts.experts and sparse_step != 1:
        refused.append("decoder_sparse_step")
    for key in refused + missing:
        raise ModelError(
            f"the model has {key} = {settings[key]}, which is not supported",
            f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)} without it.",
        )


def _size(key: str, value: Any, most: int | None = None) -> int:
    """A number of things; ModelError unless it is positive, and no larger than `most`."""
    try:
        size = int(value)
    except (ArithmeticError, TypeError, ValueError):
        size = 0
    if size < 1 or (most is not None and size > most):
        raise ModelError(f"config.json has the {key} {value}", _DAMAGED)
    return size


def _attention_scale(scalar: Any) -> float:
    if not 0 < float(scalar) < math.inf:
        raise ModelError(f"config.json divides attention scores by the root of {scalar}", _DAMAGED)
    scale: float = float(scalar) ** -0.5
    return scale


def _check_ropes(ropes: tuple[Rope, ...], head_dim: int) -> None:
    """Compute the frequencies once: the rule of each has the numbers that it needs, or this raises
    what `from_hf` makes a ModelError of.
    """
    for rope in ropes:
        num_channels = rope.num_channels(head_dim)
        inv_freq, scale = inverse_frequencies(num_channels, rope.theta, rope.scaling)
        if not (bool(inv_freq.isfinite().all()) and math.isfinite(scale)):
            raise ModelError("config.json has rotary positions of no finite frequency", _DAMAGED)


def _intermediate_size(parts: Architecture, settings: Settings) -> int:
    """The width of the MLP; architectures without a gate may leave it at four times the hidden."""
    size = settings.get("intermediate_size")
    if size is None and not parts.gated:
        return 4 * int(settings["hidden_size"])
    return _size("intermediate_size", settings["intermediate_size"])


def _experts(parts: Architecture, settings: Settings) -> Experts | None:
    if not parts.experts:
        return None
    normalized = parts.normalized or bool(settings["norm_topk_prob"])
    count = _size("num_experts", settings["num_experts"], _MOST)
    experts = Experts(count, int(settings["num_experts_per_tok"]), normalized)
    if not 0 < experts.per_token <= experts.count:
        raise ModelError(
            f"config.json sends tokens to {experts.per_token} of {experts.count} experts", _DAMAGED
        )
    return experts


def _activation(name: object, gated: bool) -> str:
    supported = activations(gated=gated)
    if name not in supported:
        raise ModelError(
            f"the activation {name} is not supported", f"Supported: {', '.join(supported)}."
        )
    return str(name)


def _layers(parts: Architecture, settings: Settings, num_layers: int) -> tuple[LayerAttention, ...]:
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
    rotates = [parts.first_position is None] * num_layers
    if parts.rotates is not None:
        rotates = parts.rotates(settings, num_layers)
    return tuple(
        LayerAttention(
            rope=(1 if parts.separate_ropes and kind == SLIDING else 0) if rotated else None,
            window=window if kind == SLIDING else None,
        )
        for kind, rotated in zip(kinds, rotates, strict=True)
    )


def _optional_int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _optional_float(value: Any) -> float | None:
    return float(value) if value else None


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, list) else ()
