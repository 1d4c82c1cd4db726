"""The gated activation of SwiGLU (Shazeer, 2020): silu(gate) * up, in float32."""

import torch


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F] in the input's dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)
