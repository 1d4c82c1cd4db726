"""Rotary frequencies of a model, with the scaling rules that configs name.

Sources: Su et al. 2021; `linear` position interpolation (Chen et al. 2023); `llama3` as published
with Llama 3.1.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> torch.Tensor:
    """float32 [head_dim / 2]. `scaling` is the config's rope_scaling, of a supported rope_type."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inv_freq = 1.0 / theta**exponents
    rope_type = "default" if scaling is None else scaling.get("rope_type", "default")
    if scaling is None or rope_type == "default":
        return inv_freq
    if rope_type == "linear":
        return inv_freq / float(scaling["factor"])
    assert rope_type == "llama3", "the config admits supported types only"
    return _llama3(inv_freq, scaling)


def _llama3(inv_freq: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Divide low frequencies by the factor, keep high ones, and blend those between."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original_len = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inv_freq
    blend = ((original_len / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * inv_freq / factor + blend * inv_freq
