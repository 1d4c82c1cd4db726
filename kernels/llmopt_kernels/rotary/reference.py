"""Rotary position embedding (Su et al., 2021) in the half-rotated layout of Hugging Face
checkpoints.

The pair (x[i], x[i + D/2]) is rotated by the angle position * inv_freq[i].
"""

import torch


def rotary_reference(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor
) -> torch.Tensor:
    """Rotate x [T, H, D] by positions [T] with inv_freq [D / 2]; returns x's dtype."""
    angle = positions.double()[:, None, None] * inv_freq.double()  # [T, 1, D/2]
    cos, sin = angle.cos(), angle.sin()
    first, second = x.double().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)
