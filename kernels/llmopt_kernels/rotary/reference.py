"""Rotary position embedding (Su et al., 2021) in the half-rotated layout of Hugging Face
checkpoints.

The pair (x[i], x[i + R/2]) of the first R channels is rotated by the angle position * inv_freq[i];
the others stay. Models with stretched positions scale what was rotated besides (YaRN, Peng et al.,
2023).
"""

import torch


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
