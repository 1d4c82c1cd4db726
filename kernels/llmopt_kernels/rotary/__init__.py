"""Rotary position embedding from tables made once per step: the version for the device at hand.

Torch's takes three tensor operations; Triton's stores the new keys and values in the same launch.
"""

import torch

from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.store_kv import KVCache, store_keys_values

RotaryTables = tuple[torch.Tensor, torch.Tensor]


def rotary_tables(
    positions: torch.Tensor, inv_freq: torch.Tensor, dtype: torch.dtype, scale: float = 1.0
) -> RotaryTables:
    """cos and signed sin, each [T, 1, R], for `apply_rotary`.

    positions: [T]; inv_freq: float32 [R / 2]; scale: what the rotated channels are multiplied with.
    The first half of the sine is negated, so that rotating is `x * cos + swap_halves(x) * sin`.
    """
    angle = positions.float()[:, None] * inv_freq
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return (
        torch.cat([cos, cos], dim=-1).to(dtype).unsqueeze(1),
        torch.cat([-sin, sin], dim=-1).to(dtype).unsqueeze(1),
    )


def apply_rotary(x: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Rotate the first R channels of x [T, H, D]; see `reference.py` for the definition."""
    if uses_triton(x):
        from llmopt_kernels.rotary.triton import rotary_triton

        return rotary_triton(x, tables)
    cos, sin = tables
    num_rotated = cos.shape[-1]
    if num_rotated == x.shape[-1]:
        return _rotate(x, cos, sin)
    rotated = _rotate(x[..., :num_rotated], cos, sin)
    return torch.cat([rotated, x[..., num_rotated:]], dim=-1)


def rotary_store_kv(
    heads: torch.Tensor,
    num_heads: int,
    value: torch.Tensor,
    tables: RotaryTables | None,
    key_cache: KVCache,
    value_cache: KVCache,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Same signature and result as `rotary_store_kv_reference`."""
    if tables is not None:
        if uses_triton(heads):
            from llmopt_kernels.rotary.triton import rotary_store_kv_triton

            return rotary_store_kv_triton(
                heads, num_heads, value, tables, key_cache, value_cache, slots
            )
        heads = apply_rotary(heads, tables)
    store_keys_values(key_cache, value_cache, heads[:, num_heads:], value, slots)
    return heads[:, :num_heads]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    swapped = x.view(*x.shape[:-1], 2, -1).flip(-2).reshape(x.shape)
    return torch.addcmul(x * cos, swapped, sin)


__all__ = ["RotaryTables", "apply_rotary", "rotary_store_kv", "rotary_tables"]
