"""Normalization layers.

Knows nothing of models. The law: `gain` is what a normalized channel is multiplied with, however
the checkpoint stores it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from llmopt_kernels.rms_norm import add_rms_norm, rms_norm


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """RMSNorm over the last dimension, with the gain `weight + offset`.

    Checkpoints of Gemma store weights around 0 (offset 1), others the gain itself (offset 0).
    """

    weight: torch.Tensor
    eps: float
    offset: float = 0.0
    gain: torch.Tensor = field(init=False)  # float32 where an offset was added, else the weight

    def __post_init__(self) -> None:
        gain = self.weight if self.offset == 0 else self.weight.float() + self.offset
        object.__setattr__(self, "gain", gain)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C] -> [..., C]."""
        return rms_norm(x, self.gain, self.eps)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """LayerNorm over the last dimension (Ba et al., 2016)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C] -> [..., C]."""
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Norms of the query and of the key heads, over the channels of each head."""

    query: RMSNorm
    key: RMSNorm
    num_heads: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: query heads, then key heads [T, H + KH, D] -> the same shape."""
        query, key = x[:, : self.num_heads], x[:, self.num_heads :]
        return torch.cat([self.query(query), self.key(key)], dim=1)


def add_norm(
    norm: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, branch: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of hidden + branch, and the sum; of an RMSNorm one kernel computes both.

    hidden, branch: [T, C], of one dtype; None: there is nothing to add -> [T, C] each
    """
    if branch is None:
        return norm(hidden), hidden
    if isinstance(norm, RMSNorm):
        return add_rms_norm(branch, hidden, norm.gain, norm.eps)
    total = hidden + branch
    return norm(total), total


def unchanged(x: torch.Tensor) -> torch.Tensor:
    """Stands where a model has no norm."""
    return x
