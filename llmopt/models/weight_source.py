"""Where a model's tensors come from: a checkpoint, or anything that can stand in for one.

Knows names and how checkpoints lay out matrices; knows nothing of the parts of a model. The law: a
tensor whose shape does not fit the config is refused before anything is computed.
"""

from typing import Any, Protocol

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.weights import Checkpoint, quantized_weights
from llmopt.layers.linear import Weight
from llmopt.models.config import ModelConfig


class WeightSource(Protocol):
    """Tensors by the names of Hugging Face checkpoints. Raises CheckpointError."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of this shape, in any floating dtype."""

    def linear(self, module: str, shape: tuple[int, int]) -> Weight:
        """The weight [O, K] of a linear layer, quantized or not."""


class CheckpointWeights:
    """The tensors of a checkpoint (`WeightSource`); the model's own name in front may be missing,
    as it is where only the model without its head was saved.
    """

    def __init__(self, reader: Checkpoint) -> None:
        self.config = reader.config
        model = ModelConfig.from_hf(reader.config)
        self._transposed = f"{model.names.blocks}." if model.transposed else None
        self._reader = reader
        self._quantized = quantized_weights(reader)

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One tensor. Raises CheckpointError: it is missing, or has another shape."""
        bare = name.partition(".")[2]
        found = bare if name not in self._reader and bare in self._reader else name
        tensor = self._reader.tensor(found)
        _check_shape(name, tuple(tensor.shape), shape)
        return tensor

    def linear(self, module: str, shape: tuple[int, int]) -> Weight:
        """The weight of a linear layer. Raises CheckpointError."""
        if self._quantized is not None and module in self._quantized:
            weight = self._quantized.weight(module)
            _check_shape(module, weight.shape, shape)
            return weight
        if self._transposed is not None and module.startswith(self._transposed):
            return self.tensor(f"{module}.weight", (shape[1], shape[0])).t()
        return self.tensor(f"{module}.weight", shape)


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise CheckpointError(
            f"{name} has shape {list(found)} where config.json implies {list(expected)}",
            "config.json and the weights are from different models; fetch the model again.",
        )
