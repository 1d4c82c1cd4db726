"""Rotary position embedding (Su et al., 2021) in the half-rotated layout of Hugging Face
checkpoints.

The pair (x[i], x[i + R/2]) of the first R channels is rotated by the angle position * inv_freq[i];
the others stay. Models with stretched positions scale what was rotated besides (YaRN, Peng et al.,
2023).
"""

import torch

from llmopt_kernels.store_kv.cache import KVCache
from llmopt_kernels.store_kv.reference import store_keys_values_reference


def rotary_reference(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Rotate x [T, H, D] by positions [T] with inv_freq [R / 2]; returns x's dtype."""
    angle = positions.double()[:, None, None] * inv_freq.double()  # [T, 1, R/2]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    wide, num_rotated = x.double(), 2 * len(inv_freq)
    first, second = wide[..., :num_rotated].chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([rotated, wide[..., num_rotated:]], dim=-1).to(x.dtype)


def rotate_by_tables_reference(
    x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Rotate x [T, H, D] by cos and signed sin [T, 1, R] of `rotary_tables`, in float64."""
    cos, sin = (table.double() for table in tables)
    wide, num_rotated = x.double(), cos.shape[-1]
    first, second = wide[..., :num_rotated].chunk(2, dim=-1)
    rotated = wide[..., :num_rotated] * cos + torch.cat([second, first], dim=-1) * sin
    return torch.cat([rotated, wide[..., num_rotated:]], dim=-1).to(x.dtype)


def rotary_store_kv_reference(
    heads: torch.Tensor,
    num_heads: int,
    value: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    key_cache: KVCache,
    value_cache: KVCache,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Rotate query and key heads, and store keys and values.

    heads: [T, H + KH, D], the H = num_heads query heads before the key heads; value: [T, KH, D];
    tables: None: nothing is rotated; slots: int64 [T]. Returns the query heads [T, H, D].
    """
    if tables is not None:
        heads = rotate_by_tables_reference(heads, tables)
    store_keys_values_reference(key_cache, value_cache, heads[:, num_heads:], value, slots)
    return heads[:, :num_heads]
