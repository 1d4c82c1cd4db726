"""activation(gate) * up: the versions for the device at hand. See `reference.py`."""

import torch
import torch.nn.functional as F

from llmopt_kernels.dispatch import uses_triton
from llmopt_kernels.gated_activation.reference import QUANTIZERS


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F]."""
    return _gated(gate_up, "silu")


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F]."""
    return _gated(gate_up, "gelu_tanh")


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * F], the gate first; returns [T, F]."""
    return _gated(gate_up, "gelu")


def gated_quantize(
    gate_up: torch.Tensor, activation: str, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product, rounded token by token.

    gate_up: [T, 2 * F]; activation: silu, gelu_tanh or gelu; form: int8 or fp8
    -> codes [T, F], scales float32 [T, 1]
    """
    if uses_triton(gate_up):
        from llmopt_kernels.gated_activation.triton import gated_quantize_triton

        return gated_quantize_triton(gate_up, activation, form)
    return QUANTIZERS[form](_gated(gate_up, activation))


def _gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    if uses_triton(gate_up):
        from llmopt_kernels.gated_activation.triton import gated_activation_triton

        return gated_activation_triton(gate_up, activation)
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate).mul_(up)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(up)


__all__ = ["gated_quantize", "gelu_mul", "gelu_tanh_mul", "silu_mul"]
