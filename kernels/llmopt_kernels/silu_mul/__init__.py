"""silu(gate) * up: the version for the device at hand."""

import torch
import torch.nn.functional as F


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F]. See `reference.py`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


__all__ = ["silu_mul"]
