"""Rotary position embedding in three tensor operations, from tables made once per step."""

import torch

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
    cos, sin = tables
    num_rotated = cos.shape[-1]
    if num_rotated == x.shape[-1]:
        return _rotate(x, cos, sin)
    rotated = _rotate(x[..., :num_rotated], cos, sin)
    return torch.cat([rotated, x[..., num_rotated:]], dim=-1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    swapped = x.view(*x.shape[:-1], 2, -1).flip(-2).reshape(x.shape)
    return torch.addcmul(x * cos, swapped, sin)


__all__ = ["RotaryTables", "apply_rotary", "rotary_tables"]
