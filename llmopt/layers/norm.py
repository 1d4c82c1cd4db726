"""Normalization layers."""

from dataclasses import dataclass

import torch

from llmopt_kernels.rms_norm import rms_norm


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """RMSNorm over the last dimension."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C] -> [..., C]."""
        return rms_norm(x, self.weight, self.eps)
