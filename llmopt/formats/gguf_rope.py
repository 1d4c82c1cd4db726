"""The scaling of rotary positions: in config.json a rule, in a GGUF file a table of factors.

Knows nothing of files. The law: a table whose rule cannot be found again, to within rounding, is
refused.

Sources: transformers' keys of config.json, old and new; the `llama3` rule as published with Llama
3.1; llama.cpp's HF converter for the table (`rope_freqs.weight`): by what each of the head_dim / 2
frequencies is divided.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmopt.formats.gguf_header import GgufError

Scaling = Mapping[str, Any]  # rope_type and the numbers of its rule, under config.json's names

_DEFAULT_THETA = 10000.0
_TOLERANCE = 1e-4  # relative: float32 tables, rounded parameters


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary positions of a model; `local_theta` is that of layers with a sliding window."""

    theta: float
    local_theta: float
    scaling: Scaling | None


def rope_of_config(config: Mapping[str, Any]) -> Rope:
    """What config.json says, in transformers' new way or in the old one."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local = parameters.get("sliding_attention") or {}
    own = parameters.get("full_attention") or parameters
    kind = own.get("rope_type") or own.get("type") or "default"
    local_theta = local.get("rope_theta") or config.get("rope_local_base_freq") or _DEFAULT_THETA
    return Rope(
        theta=float(own.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA),
        local_theta=float(local_theta),
        scaling=None if kind == "default" else {**own, "rope_type": kind},
    )


def llama3_factors(scaling: Scaling, theta: float, head_dim: int) -> torch.Tensor:
    """By what each frequency is divided, float32 [head_dim / 2]."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) / _wavelengths(theta, head_dim)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - blend) / factor + blend)).float()


def llama3_scaling(factors: torch.Tensor, theta: float) -> Scaling | None:
    """The rule that gives a table, None for one that changes nothing. factors: [head_dim / 2].

    Raises GgufError: no such rule gives it.

    The rule is the same when the original length and both frequency factors grow together, so the
    low one is taken to be 1, as it is in every published model.
    """
    values = factors.double()
    if torch.all(values == 1):
        return None
    factor = float(values.max())
    between = (values > 1 + _TOLERANCE) & (values < factor * (1 - _TOLERANCE))
    if factor <= 1 or int(between.sum()) < 2:
        raise GgufError("its table of rotary factors follows no rule that is known")
    blend = (1 / values[between] - 1 / factor) / (1 - 1 / factor)
    frequency = 1 / _wavelengths(theta, 2 * len(values))[between]
    # blend = (length * frequency - low) / (high - low): a line, taken through its two ends
    slope = float((blend[-1] - blend[0]) / (frequency[-1] - frequency[0]))
    offset = float(blend[0] - slope * frequency[0])
    if slope <= 0 or offset >= 0:
        raise GgufError("its table of rotary factors follows no rule that is known")
    scaling: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": _neat(factor),
        "low_freq_factor": 1.0,
        "high_freq_factor": _neat(1 - 1 / offset),
        "original_max_position_embeddings": round(-slope / offset),
    }
    found = llama3_factors(scaling, theta, 2 * len(values)).double()
    if not torch.allclose(found, values, rtol=_TOLERANCE, atol=0):
        raise GgufError("its table of rotary factors follows no rule that is known")
    return scaling


def _wavelengths(theta: float, head_dim: int) -> torch.Tensor:
    """Positions per turn of each rotary pair, float64 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return 2 * math.pi * theta**exponents


def _neat(value: float) -> float:
    """The number that a rounded one stands for."""
    nearest = round(value, 2)
    return nearest if math.isclose(value, nearest, rel_tol=_TOLERANCE) else value
