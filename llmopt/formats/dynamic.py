"""Weights whose layer also quantizes its inputs, token by token, at run time (W8A8, FP8).

Knows nothing of files or kernels. The law: the weight itself means what the stored weight in it
means; how inputs are rounded is defined beside the kernels that do it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from llmopt.formats.fp8 import Fp8Spec, Fp8Weight, concatenate_fp8
from llmopt.formats.quantized import (
    QuantizedWeight,
    QuantSpec,
    can_concatenate,
    concatenate_rows,
)

Activations = Literal["int8", "fp8"]


@dataclass(frozen=True, slots=True)
class DynamicSpec:
    """How weights are stored, and the type that each token's inputs are rounded to."""

    weight: QuantSpec | Fp8Spec
    activations: Activations

    @property
    def name(self) -> str:
        """In short: "w8a8", "w4g64a8", "w4g64afp8", "fp8"."""
        inputs = "a8" if self.activations == "int8" else "afp8"
        if isinstance(self.weight, Fp8Spec):
            return "fp8" if self.activations == "fp8" else f"fp8{inputs}"
        return self.weight.label("").removeprefix("-") + inputs

    def label(self, method: str) -> str:
        """The scheme's name, such as "smoothquant-w8a8" or "rtn-fp8"; a method that is called
        like the scheme is not repeated.
        """
        return self.name if method == self.name else f"{method}-{self.name}"


WeightSpec = QuantSpec | Fp8Spec | DynamicSpec


@dataclass(frozen=True, slots=True)
class DynamicWeight:
    """An [O, K] matrix of a layer that rounds its inputs to `activations`, with a scale per
    token.
    """

    weight: QuantizedWeight | Fp8Weight
    activations: Activations

    @property
    def spec(self) -> DynamicSpec:
        """What describes it."""
        return DynamicSpec(self.weight.spec, self.activations)

    @property
    def shape(self) -> tuple[int, int]:
        """(O, K)."""
        return self.weight.shape

    @property
    def label(self) -> str:
        """Such as "w8a8"."""
        return self.spec.name

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight [O, K]; says nothing of the inputs."""
        return self.weight.dequantize(dtype)

    def to(self, device: torch.device) -> "DynamicWeight":
        """The same weight on another device."""
        return DynamicWeight(self.weight.to(device), self.activations)


def stack_dynamic(weights: Sequence[DynamicWeight]) -> DynamicWeight | None:
    """One weight of matrices that share their input (q, k, v; gate, up), or None if they round
    it differently or cannot be one matrix.
    """
    activations = weights[0].activations
    if any(weight.activations != activations for weight in weights):
        return None
    floats = [w.weight for w in weights if isinstance(w.weight, Fp8Weight)]
    integers = [w.weight for w in weights if isinstance(w.weight, QuantizedWeight)]
    if not integers:
        return DynamicWeight(concatenate_fp8(floats), activations)
    if floats or not can_concatenate(integers):
        return None
    return DynamicWeight(concatenate_rows(integers), activations)
