"""The gated activations of Shazeer, 2020, in float32: SwiGLU and, with the tanh form of GELU
(Hendrycks and Gimpel, 2016), GEGLU.
"""

import math

import torch


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F] in the input's dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)


def gelu_tanh_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F] in the input's dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return (0.5 * gate * (1 + torch.tanh(inner)) * up).to(gate_up.dtype)
