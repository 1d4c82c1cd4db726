"""A model's config.json and the metadata of a GGUF file, one made from the other.

Knows nothing of files or tensors' data. The law: what GGUF cannot say, or llama.cpp would compute
differently from what config.json says, is refused with a sentence, never dropped.

Sources: the GGUF specification of ggml for the keys; `gguf_names` has what each architecture of
llama.cpp takes as given.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmopt.errors import ModelError
from llmopt.formats.gguf_header import GgufError, GgufField, GgufValue
from llmopt.formats.gguf_names import ARCHITECTURES, GgufArchitecture, architecture_of
from llmopt.formats.gguf_rope import Scaling, rope_of_config

QUANTIZATION_VERSION = 2  # of ggml's block layouts
_ROLES = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def metadata_of_config(config: Mapping[str, Any], *, file_type: int) -> dict[str, GgufField]:
    """The metadata of a model, without name and tokenizer. config: config.json.

    file_type: GGUF's number for the mix of tensor types. Raises ModelError for an architecture or a
    setting that GGUF or llama.cpp does not have.
    """
    try:
        architecture = architecture_of((config.get("architectures") or ["(none named)"])[0])
        _require_computable(architecture, config)
        own = _sizes(architecture, config) | _rope_fields(architecture, config)
        own |= _window_fields(architecture, config) | _cap_fields(architecture, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"config.json lacks a usable value for {error}", "Fetch the model again."
        ) from error
    return {
        "general.architecture": GgufField.string(architecture.name),
        "general.type": GgufField.string("model"),
        "general.file_type": GgufField.uint32(file_type),
        "general.quantization_version": GgufField.uint32(QUANTIZATION_VERSION),
    } | {f"{architecture.name}.{key}": field for key, field in own.items()}


def _sizes(architecture: GgufArchitecture, config: Mapping[str, Any]) -> dict[str, GgufField]:
    head_dim = _head_dim(architecture, config)
    num_heads = config["num_attention_heads"]
    counts = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": num_heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or num_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * _rotary_share(config)),
        "vocab_size": config["vocab_size"],
    }
    for key, value in counts.items():
        if not isinstance(value, int) or not 0 < value < 1 << 32:
            raise ModelError(
                f"config.json implies {value!r} for {key}, not a count", "Fetch the model again."
            )
    epsilon = GgufField.float32(float(config["rms_norm_eps"]))
    fields = {key: GgufField.uint32(value) for key, value in counts.items()}
    return fields | {"attention.layer_norm_rms_epsilon": epsilon}


def _head_dim(architecture: GgufArchitecture, config: Mapping[str, Any]) -> int:
    implied = config["hidden_size"] // config["num_attention_heads"]
    return int(config.get("head_dim") or architecture.head_dim or implied)


def _rotary_share(config: Mapping[str, Any]) -> float:
    parameters = config.get("rope_parameters") or {}
    share = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor")
    return float(share or 1.0)


def _rope_fields(architecture: GgufArchitecture, config: Mapping[str, Any]) -> dict[str, GgufField]:
    rope = rope_of_config(config)
    fields = {"rope.freq_base": GgufField.float32(rope.theta)}
    if rope.scaling is None:
        return fields
    kind = rope.scaling["rope_type"]
    if kind == "linear":
        fields["rope.scaling.type"] = GgufField.string("linear")
        fields["rope.scaling.factor"] = GgufField.float32(float(rope.scaling["factor"]))
    elif kind != "llama3" or architecture.name != "llama":
        raise ModelError(
            f"the rotary embedding type {kind} of {architecture.hf_name} cannot be written as GGUF",
            "Models with plain or linearly scaled positions can, and Llama's llama3 type.",
        )
    return fields  # llama3 is a tensor, not metadata


def _window_fields(
    architecture: GgufArchitecture, config: Mapping[str, Any]
) -> dict[str, GgufField]:
    fields: dict[str, GgufField] = {}
    if architecture.local_theta:
        fields["rope.freq_base_swa"] = GgufField.float32(rope_of_config(config).local_theta)
    if architecture.window_period is None:
        return fields
    sliding = _sliding_layers(architecture.window_period, config)
    if any(sliding):
        fields["attention.sliding_window"] = GgufField.uint32(int(config["sliding_window"]))
        if sliding != _pattern(architecture.window_period, len(sliding)):
            fields["attention.sliding_window_pattern"] = GgufField.booleans(sliding)
    return fields


def _cap_fields(architecture: GgufArchitecture, config: Mapping[str, Any]) -> dict[str, GgufField]:
    caps = {key: config.get(key) for key, _ in architecture.soft_caps}
    return {key: GgufField.float32(float(cap)) for key, cap in caps.items() if cap}


def _sliding_layers(usual_period: int, config: Mapping[str, Any]) -> list[bool]:
    """Which layers see a window only."""
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    return _pattern(int(period or usual_period), config["num_hidden_layers"])


def _pattern(period: int, num_layers: int) -> list[bool]:
    return [(layer + 1) % period != 0 for layer in range(num_layers)]


def _require_computable(architecture: GgufArchitecture, config: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp has no word for."""
    name, head_dim = architecture.name, _head_dim(architecture, config)
    num_heads, hidden_size = config["num_attention_heads"], config["hidden_size"]
    activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
    caps = dict(architecture.soft_caps)
    period, share = architecture.window_period, _rotary_share(config)
    refusals = {
        f"the activation {activation}": activation != architecture.activation,
        "biases in its attention": bool(config.get("attention_bias")) and name != "llama",
        "a sliding window": period is None and _has_window(config),
        f"heads of {head_dim}": name == "qwen2" and num_heads * head_dim != hidden_size,
        "soft-capped attention": (
            "attn_logit_softcapping" not in caps and bool(config.get("attn_logit_softcapping"))
        ),
        "attention in both directions": bool(config.get("use_bidirectional_attention")),
        f"{share:g} of each head rotated": share != 1 and not architecture.partial_rotary,
    }
    for key, value in caps.items():
        refusals[f"no {key}"] = bool(value) and not config.get(key)
    if period is not None and not architecture.says_pattern:
        sliding = _sliding_layers(period, config)
        refusals["another order of sliding windows"] = sliding != _pattern(period, len(sliding))
    if architecture.odd_depth is not None:
        scalar = float(config["query_pre_attn_scalar"])
        refusals[f"the query scale 1/sqrt({scalar:g})"] = scalar != _query_scalar(
            architecture, config["num_hidden_layers"], hidden_size, num_heads, head_dim
        )
    for what, refused in refusals.items():
        if refused:
            raise ModelError(
                f"{architecture.hf_name} with {what} cannot be written as GGUF",
                "llama.cpp would compute another model; write another format.",
            )


def _has_window(config: Mapping[str, Any]) -> bool:
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    if config["sliding_window"] >= config["max_position_embeddings"]:
        return False
    kinds = config.get("layer_types")
    if kinds:
        return "sliding_attention" in kinds
    return bool(config.get("max_window_layers", 0) < config["num_hidden_layers"])


def _query_scalar(
    architecture: GgufArchitecture,
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    head_dim: int,
) -> int:
    return hidden_size // num_heads if num_layers == architecture.odd_depth else head_dim


class ConfigReader:
    """Builds the config.json of a file's model. Raises GgufError for what has no equivalent."""

    def __init__(self, metadata: Mapping[str, GgufValue]) -> None:
        self._metadata = metadata
        name = metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            known = ", ".join(map(repr, ARCHITECTURES))
            raise GgufError(f"its architecture is {name!r}; only {known} are read")
        self.architecture = ARCHITECTURES[name]

    def config(
        self, *, vocab_size: int, tied: bool, scaling: Scaling | None, biased: frozenset[str]
    ) -> dict[str, Any]:
        """config.json. scaling: of the rotary positions, where a tensor says so; biased: ggml's
        names of the modules with a bias.
        """
        num_heads = self.integer("attention.head_count")
        config: dict[str, Any] = {
            "architectures": [self.architecture.hf_name],
            "model_type": self.architecture.model_type,
            "vocab_size": vocab_size,
            "hidden_size": self.integer("embedding_length"),
            "intermediate_size": self.integer("feed_forward_length"),
            "num_hidden_layers": self.integer("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self.integer("attention.head_count_kv", num_heads),
            "head_dim": self.head_dim,
            self.architecture.activation_key: self.architecture.activation,
            "max_position_embeddings": self.integer("context_length"),
            "rms_norm_eps": self.real("attention.layer_norm_rms_epsilon"),
            "rope_theta": self.real("rope.freq_base", 10000.0),
            "tie_word_embeddings": tied,
        }
        if self.architecture.name == "llama":
            config["attention_bias"] = "attn_q" in biased
            config["mlp_bias"] = "ffn_gate" in biased
        scaling = scaling or self._linear_scaling()
        if scaling is not None:
            config["rope_scaling"] = dict(scaling)
        config |= self._windows(config["num_hidden_layers"]) | self._query_scale(config)
        if self.architecture.local_theta:
            config |= self._two_ropes(config, scaling)
        if self.architecture.partial_rotary:
            rotated = self.integer("rope.dimension_count", self.head_dim)
            config["partial_rotary_factor"] = rotated / self.head_dim
        for key, default in self.architecture.soft_caps:
            config[key] = self.real(key, default) or None
        for key, role in _ROLES.items():
            if f"tokenizer.ggml.{role}_token_id" in self._metadata:
                config[key] = self._value_of_token(role)
        return config

    def _windows(self, num_layers: int) -> dict[str, Any]:
        window = self.integer("attention.sliding_window", self.architecture.window, minimum=0)
        period = self.architecture.window_period
        if period is None:
            return {"sliding_window": window} if window else {}
        sliding = self._pattern(num_layers, period) if window else [False] * num_layers
        return {
            "sliding_window": window or None,
            "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
        }

    def _query_scale(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if self.architecture.odd_depth is None:
            return {}
        scalar = _query_scalar(
            self.architecture,
            config["num_hidden_layers"],
            config["hidden_size"],
            config["num_attention_heads"],
            config["head_dim"],
        )
        return {"query_pre_attn_scalar": scalar, "attention_bias": False}

    def _two_ropes(self, config: Mapping[str, Any], scaling: Scaling | None) -> dict[str, Any]:
        full = {**(scaling or {"rope_type": "default"}), "rope_theta": config["rope_theta"]}
        local_theta = self.real("rope.freq_base_swa", 10000.0)
        return {
            "rope_local_base_freq": local_theta,
            "rope_parameters": {
                "full_attention": full,
                "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
            },
        }

    def _pattern(self, num_layers: int, period: int) -> list[bool]:
        value = self._own("attention.sliding_window_pattern", period)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return _pattern(value, num_layers)
        if isinstance(value, list) and len(value) >= num_layers:
            return [bool(item) for item in value[:num_layers]]
        raise GgufError(f"its pattern of sliding windows does not fit {num_layers} layers")

    @property
    def head_dim(self) -> int:
        """Channels of a head; its keys, values and rotary positions have the same."""
        implied = self.integer("embedding_length") // self.integer("attention.head_count")
        head_dim = self.integer("attention.key_length", implied)
        alike = ["attention.value_length"]
        if not self.architecture.partial_rotary:
            alike.append("rope.dimension_count")
        for key in alike:
            if self.integer(key, head_dim) != head_dim:
                raise GgufError(f"its metadata has another {key} than keys of {head_dim}")
        return head_dim

    def _linear_scaling(self) -> Scaling | None:
        kind = self._own("rope.scaling.type", "linear")
        factor = self.real("rope.scaling.factor", self.real("rope.scale_linear", 1.0))
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return None
        if kind != "linear":
            raise GgufError(f"it uses RoPE scaling of the type {kind!r}, which is not read")
        return {"rope_type": "linear", "factor": factor}

    def _value_of_token(self, role: str) -> int:
        value = self._metadata[f"tokenizer.ggml.{role}_token_id"]
        if not isinstance(value, int) or value < 0:
            raise GgufError(f"its metadata has {value!r} as its {role} token")
        return value

    def _own(self, key: str, default: GgufValue | None = None) -> GgufValue | None:
        return self._metadata.get(f"{self.architecture.name}.{key}", default)

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """A count under the architecture's own prefix."""
        value = self._own(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            key = f"{self.architecture.name}.{key}"
            raise GgufError(f"its metadata has {value!r} for {key}, not a count")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A float32 of the header, as the shortest decimal that stands for it: 1e-05."""
        value = self._own(key, default)
        largest = float(np.finfo(np.float32).max)
        if not isinstance(value, int | float) or not -largest <= value <= largest:
            key = f"{self.architecture.name}.{key}"
            raise GgufError(f"its metadata has {value!r} for {key}, not a number")
        return float(str(np.float32(value)))
