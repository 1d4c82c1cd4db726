"""Rotary position embedding in three tensor operations, from tables made once per step."""

import torch

RotaryTables = tuple[torch.Tensor, torch.Tensor]


def rotary_tables(
    positions: torch.Tensor, inv_freq: torch.Tensor, dtype: torch.dtype
) -> RotaryTables:
    """cos and signed sin, each [T, 1, D], for `apply_rotary`.

    positions: [T]; inv_freq: float32 [D / 2]. The first half of the sine is negated, so that
    rotating is `x * cos + swap_halves(x) * sin`.
    """
    angle = positions.float()[:, None] * inv_freq
    cos, sin = angle.cos(), angle.sin()
    return (
        torch.cat([cos, cos], dim=-1).to(dtype).unsqueeze(1),
        torch.cat([-sin, sin], dim=-1).to(dtype).unsqueeze(1),
    )


def apply_rotary(x: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Rotate x [T, H, D]; see `reference.py` for the definition."""
    cos, sin = tables
    swapped = x.view(*x.shape[:-1], 2, -1).flip(-2).view(x.shape)
    return torch.addcmul(x * cos, swapped, sin)


__all__ = ["RotaryTables", "apply_rotary", "rotary_tables"]
