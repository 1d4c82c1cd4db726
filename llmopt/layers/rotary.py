"""Rotary frequencies of a model, with the scaling rules that configs name.

Knows nothing of models or of how heads are rotated. The law: the rules are those of transformers,
for positions up to the length that the config admits.

Sources: Su et al. 2021; `linear` position interpolation (Chen et al. 2023); `llama3` as published
with Llama 3.1; `yarn` (Peng et al. 2023); `longrope` (Ding et al. 2024), its short factors only.
`dynamic` scaling changes nothing up to the trained length, and no more is admitted.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from llmopt.errors import ModelError

Scaling = Mapping[str, Any]
Frequencies = tuple[torch.Tensor, float]


def inverse_frequencies(num_channels: int, theta: float, scaling: Scaling | None) -> Frequencies:
    """float32 [num_channels / 2], and what rotated channels are multiplied with.

    num_channels: of a head, that are rotated; scaling: the config's rope_scaling, of a supported
    rope_type. Raises ModelError where its factors are not one for each frequency.
    """
    exponents = torch.arange(0, num_channels, 2, dtype=torch.float32) / num_channels
    wavelengths = theta**exponents  # of a radian
    rule = _RULES[_type_of(scaling)]
    return (1.0 / wavelengths, 1.0) if rule is None else rule(wavelengths, theta, scaling or {})


def _type_of(scaling: Scaling | None) -> str:
    return "default" if scaling is None else str(scaling.get("rope_type", "default"))


def _linear(wavelengths: torch.Tensor, _theta: float, scaling: Scaling) -> Frequencies:
    return 1.0 / wavelengths / float(scaling["factor"]), 1.0


def _llama3(wavelengths: torch.Tensor, _theta: float, scaling: Scaling) -> Frequencies:
    """Divide low frequencies by the factor, keep high ones, and blend those between."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) / (2 * math.pi * wavelengths)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return ((1 - blend) / factor + blend) / wavelengths, 1.0


def _yarn(wavelengths: torch.Tensor, theta: float, scaling: Scaling) -> Frequencies:
    """Divide the frequencies that turn seldom within the trained length by the factor."""
    trained_len = float(scaling["original_max_position_embeddings"])
    num_pairs, factor = len(wavelengths), float(scaling["factor"])

    def pair_of(turns: float) -> float:
        """The pair that turns so often within the trained length."""
        return num_pairs * math.log(trained_len / (turns * 2 * math.pi)) / math.log(theta)

    first = pair_of(float(scaling.get("beta_fast") or 32))
    last = pair_of(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * num_pairs - 1)
    width = (last - first) or 0.001
    divided = ((torch.arange(num_pairs) - first) / width).clamp(0, 1)
    return (divided / factor + (1 - divided)) / wavelengths, _yarn_scale(factor, scaling)


def _yarn_scale(factor: float, scaling: Scaling) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def growth(strength: float) -> float:
        return 0.1 * strength * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return growth(float(scaling["mscale"])) / growth(float(scaling["mscale_all_dim"]))
    return growth(1.0)


def _longrope(wavelengths: torch.Tensor, _theta: float, scaling: Scaling) -> Frequencies:
    """Divide each frequency by a factor of its own; those for short texts."""
    factors = torch.tensor(scaling["short_factor"], dtype=torch.float32)
    if factors.shape != wavelengths.shape:
        raise ModelError(
            f"config.json has {factors.numel()} factors in short_factor for {len(wavelengths)}"
            " rotary frequencies",
            "Fetch the model again.",
        )
    scale = scaling.get("attention_factor")
    if scale is None:
        factor = float(scaling["factor"])
        trained_len = float(scaling["original_max_position_embeddings"])
        scale = math.sqrt(1 + math.log(factor) / math.log(trained_len)) if factor > 1 else 1.0
    return 1.0 / (factors * wavelengths), float(scale)


_Rule = Callable[[torch.Tensor, float, Scaling], Frequencies]
_RULES: Mapping[str, _Rule | None] = MappingProxyType(
    {
        "default": None,
        "dynamic": None,
        "linear": _linear,
        "llama3": _llama3,
        "longrope": _longrope,
        "yarn": _yarn,
    }
)
SUPPORTED_ROPE_TYPES = tuple(_RULES)
