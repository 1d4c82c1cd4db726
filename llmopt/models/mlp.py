"""The second half of a decoder block: an MLP, or a mixture of them.

Knows nothing of files or of attention. The law: what a token gets depends on no other token but for
rounding.
"""

from collections.abc import Sequence

import torch

from llmopt.layers.activation import Activation
from llmopt.layers.linear import Linear
from llmopt.layers.stacked_experts import StackedExperts, stack_experts
from llmopt.models.config import Experts
from llmopt_kernels.moe import mix_experts, route

Stage = tuple[Linear, ...]  # linear layers that run side by side


class MLP:
    """down(activation(gate_up(x))). gate_up: gate and up as one projection, or the only matrix
    before the activation where there is no gate.
    """

    def __init__(self, gate_up: Linear, down: Linear, activation: Activation) -> None:
        self.gate_up = gate_up
        self.down = down
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, C] -> [T, C]."""
        return self.down(self.activation(self.gate_up(x)))

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """The linear layers before and behind the activation."""
        return (self.gate_up,), (self.down,)

    @property
    def linears(self) -> Stage:
        """All linear layers."""
        return self.gate_up, self.down

    @property
    def weight_bytes_per_token(self) -> float:
        """Bytes of weights that a step of one token reads."""
        return self.gate_up.weight_bytes + self.down.weight_bytes


class MixtureOfExperts:
    """Each token goes to the experts that the router rates highest, and gets their weighted sum."""

    def __init__(self, router: Linear, experts: Sequence[MLP], facts: Experts) -> None:
        assert len(experts) == facts.count, "one MLP for each expert"
        self.router = router
        self.experts = tuple(experts)
        self.facts = facts
        self._forwards = [expert.forward for expert in experts]
        self._stacked: StackedExperts | None = None

    def stack(self) -> None:
        """Compute all experts by one launch per projection, where they allow it: on a GPU, for a
        model whose layers are not changed any more.
        """
        gate_up, down = self.stages
        self._stacked = stack_experts(gate_up, down, self.experts[0].activation)

    @property
    def is_stacked(self) -> bool:
        """Whether the experts are computed together, without waiting for the device."""
        return self._stacked is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, C] -> [T, C]."""
        weights, chosen = route(self.router(x), self.facts.per_token, self.facts.normalized)
        if self._stacked is not None:
            return self._stacked(x, weights, chosen)
        return mix_experts(x, weights, chosen, self._forwards)

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """The experts' layers before the activation, and those behind it, by expert."""
        first = tuple(expert.gate_up for expert in self.experts)
        return first, tuple(expert.down for expert in self.experts)

    @property
    def linears(self) -> Stage:
        """All linear layers, the router first."""
        return self.router, *(layer for expert in self.experts for layer in expert.linears)

    @property
    def weight_bytes_per_token(self) -> float:
        """Bytes of weights that a step of one token reads: experts differ little, if at all."""
        total = sum(expert.weight_bytes_per_token for expert in self.experts)
        return self.router.weight_bytes + total * self.facts.per_token / self.facts.count
