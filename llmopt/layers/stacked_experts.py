"""The experts of a mixture as stacked matrices, computed by one launch per projection on a GPU.

Knows nothing of models or files. The law: what a token gets is what `mix_experts` gives it, up to
rounding, and the same in every run: experts are added in the order of their numbers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from llmopt.layers.activation import Activation
from llmopt.layers.linear import DenseLinear, Linear
from llmopt.layers.triton_linear import TritonLinear, takes_packed
from llmopt_kernels.matmul.packed import PackedWeight
from llmopt_kernels.moe.blocks import expert_blocks

if TYPE_CHECKING:
    from llmopt_kernels.moe.triton import ExpertStack


class StackedExperts:
    """down(activation(gate_up(x))) of every expert."""

    def __init__(
        self, gate_up: "ExpertStack", down: "ExpertStack", activation: Activation, count: int
    ) -> None:
        self._gate_up = gate_up
        self._down = down
        self._activation = activation
        self._count = count

    def __call__(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sums of the chosen experts' outputs, [T, C] in the dtype of x.

        x: [T, C]; weights: float32 [T, k]; chosen: int64 [T, k].
        """
        from llmopt_kernels.moe.triton import combine_triton, expert_config, expert_matmul_triton

        first = expert_config(chosen.numel(), self._count, self._gate_up)
        second = expert_config(chosen.numel(), self._count, self._down)
        blocks = expert_blocks(chosen, weights, self._count, first["BLOCK_T"])
        inner = expert_matmul_triton(x, blocks, self._gate_up, first, gather=True)
        second = {**second, "BLOCK_T": first["BLOCK_T"]}
        outputs = expert_matmul_triton(
            self._activation(inner), blocks, self._down, second, gather=False
        )
        return combine_triton(outputs, blocks)


def stack_experts(
    gate_up: Sequence[Linear], down: Sequence[Linear], activation: Activation
) -> StackedExperts | None:
    """The experts' layers as stacks, or None where they have biases or are not alike.

    The layers keep working: their weights become views of the stacks, so nothing is there twice.
    """
    first, second = _stack(gate_up), _stack(down)
    if first is None or second is None:
        return None
    return StackedExperts(first, second, activation, len(gate_up))


def _stack(layers: Sequence[Linear]) -> "ExpertStack | None":
    dense = [layer for layer in layers if isinstance(layer, DenseLinear) and layer.bias is None]
    if len(dense) == len(layers):
        return _stack_dense(dense)
    packed = [layer for layer in layers if isinstance(layer, TritonLinear) and layer.bias is None]
    return _stack_packed(packed) if len(packed) == len(layers) else None


def _stack_dense(layers: Sequence[DenseLinear]) -> "ExpertStack | None":
    first = layers[0].weight
    if not takes_packed(first.dtype, first.device):
        return None
    from llmopt_kernels.moe.triton import DenseStack

    stacked = torch.stack([layer.weight for layer in layers])
    for layer, weight in zip(layers, stacked, strict=True):
        layer.weight = weight
    return DenseStack(stacked)


def _stack_packed(layers: Sequence[TritonLinear]) -> "ExpertStack | None":
    weights = [layer.weight for layer in layers]
    first = weights[0]
    if any(layer.order is not None or layer.kernel != layers[0].kernel for layer in layers):
        return None
    if any(_form(weight) != _form(first) for weight in weights):
        return None

    def stacked(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.stack(present) if present else None

    stack = replace(
        first,
        words=torch.stack([weight.words for weight in weights]),
        scales=torch.stack([weight.scales for weight in weights]),
        zeros=stacked([weight.zeros for weight in weights]),
        offsets=stacked([weight.offsets for weight in weights]),
    )
    for expert, layer in enumerate(layers):
        layer.weight = replace(
            layer.weight,
            words=stack.words[expert],
            scales=stack.scales[expert],
            zeros=None if stack.zeros is None else stack.zeros[expert],
            offsets=None if stack.offsets is None else stack.offsets[expert],
        )
    return stack


def _form(weight: PackedWeight) -> tuple[object, ...]:
    """What must be the same for all weights of a stack."""
    return (
        weight.shape,
        weight.bits,
        weight.group_size,
        weight.zero,
        weight.scales.dtype,
        weight.zeros is None,
        weight.offsets is None,
        weight.table is None,
    )
