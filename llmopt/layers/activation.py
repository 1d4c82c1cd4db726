"""The activations of MLPs, under the names that configs give them.

Knows nothing of models. The law: an activation with a gate halves the width of its input, one
without keeps it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F

from llmopt_kernels.gated_activation import gelu_tanh_mul, silu_mul

Activation = Callable[[torch.Tensor], torch.Tensor]  # [T, F] or, with a gate, [T, 2 * F] -> [T, F]


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The tanh form of GELU (Hendrycks and Gimpel, 2016). x: [T, F] -> [T, F]."""
    return F.gelu(x, approximate="tanh")


GATED: Mapping[str, Activation] = MappingProxyType(
    {"silu": silu_mul, "gelu_pytorch_tanh": gelu_tanh_mul}
)
PLAIN: Mapping[str, Activation] = MappingProxyType(
    {"relu": F.relu, "gelu": F.gelu, "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh}
)


def activations(*, gated: bool) -> Mapping[str, Activation]:
    """Those that an MLP with a gate can have, or one without."""
    return GATED if gated else PLAIN
