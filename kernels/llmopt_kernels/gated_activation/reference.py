"""The gated activations of Shazeer, 2020, in float32: SwiGLU and, with GELU (Hendrycks and Gimpel,
2016) in its exact and its tanh form, GEGLU. Rounding to int8 or e4m3 as in `w8a8` and `fp8`.
"""

import math

import torch

from llmopt_kernels.fp8 import reference as fp8
from llmopt_kernels.w8a8 import reference as w8a8

QUANTIZERS = {"int8": w8a8.quantize_tokens, "fp8": fp8.quantize_tokens}


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F] in the input's dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)


def gelu_tanh_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F] in the input's dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return (0.5 * gate * (1 + torch.tanh(inner)) * up).to(gate_up.dtype)


def gelu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F] in the input's dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up).to(gate_up.dtype)


REFERENCES = {
    "silu": silu_mul_reference,
    "gelu_tanh": gelu_tanh_mul_reference,
    "gelu": gelu_mul_reference,
}


def gated_quantize_reference(
    gate_up: torch.Tensor, activation: str, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """gate_up: [T, 2 * F] -> codes [T, F] and scales float32 [T, 1]; form: int8 or fp8."""
    return QUANTIZERS[form](REFERENCES[activation](gate_up))
