"""Random weights of a large model in seconds: every shape is drawn once.

Knows nothing of engines. The law: each layer has memory of its own, so that a step reads as many
bytes as with real weights; only the numbers are the same in layers of one shape, which no speed
depends on.
"""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch

from llmopt.formats.overrides import LM_HEAD
from llmopt.layers.linear import Weight
from llmopt.models.config import ModelConfig
from llmopt.models.decoder import Decoder
from llmopt.models.dummy import DummyWeights, quantize_of, read_config
from llmopt.models.loader import ModelLoader

Drawn = MutableMapping[tuple[object, ...], Any]


class RepeatedWeights:
    """`DummyWeights` (a `WeightSource`) that keeps what it drew, in `drawn` and in bfloat16."""

    def __init__(self, weights: DummyWeights, scheme: str | None, drawn: Drawn) -> None:
        self._weights = weights
        self._scheme = scheme
        self._drawn = drawn

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self._weights.config

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of this shape, bfloat16."""
        is_gain = len(shape) == 1 and name.endswith(".weight")
        key = ("tensor", is_gain, *shape)
        if key not in self._drawn:
            self._drawn[key] = self._weights.tensor(name, shape).bfloat16()
        drawn: torch.Tensor = self._drawn[key]
        return drawn

    def linear(self, module: str, shape: tuple[int, int]) -> Weight:
        """The weight [O, K] of a linear layer."""
        router = self._weights.router
        if self._scheme is None or module == LM_HEAD or (router and module.endswith(router)):
            return self.tensor(f"{module}.weight", shape)
        key = (self._scheme, *shape)
        if key not in self._drawn:
            self._drawn[key] = self._weights.linear(module, shape)
        drawn: Weight = self._drawn[key]
        return drawn


def make_large_model(
    config: Path, scheme: str | None, device: torch.device, drawn: Drawn
) -> Decoder:
    """A decoder in bfloat16; scheme as of `make_dummy_model`. Raises what that raises."""
    settings = read_config(config)
    quantize = None if scheme is None else quantize_of(scheme)
    router = ModelConfig.from_hf(settings).names.router
    source = RepeatedWeights(DummyWeights(settings, 0, quantize, router), scheme, drawn)
    return ModelLoader(source, dtype="bfloat16", device=str(device)).model()
