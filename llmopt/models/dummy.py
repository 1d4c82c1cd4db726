"""A model of random weights: as large and as fast as the real one, and no better than chance.

For measuring speed where weights cannot be had. Knows how every kind of weight that has a kernel
looks in memory; nothing is written or fetched. The law: the same config, scheme and seed give the
same model, tensor by tensor, whatever was read before.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from llmopt.errors import UsageError
from llmopt.formats.checkpoint import read_json
from llmopt.formats.codebook import CodebookKind, CodebookWeight
from llmopt.formats.dynamic import DynamicWeight
from llmopt.formats.fp8 import Fp8Weight
from llmopt.formats.overrides import LM_HEAD
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight
from llmopt.layers.linear import Weight
from llmopt.layers.native_linear import WeightActivations
from llmopt.models.config import ModelConfig
from llmopt.models.decoder import Decoder
from llmopt.models.loader import ModelLoader
from llmopt.models.resolve import resolve_model

_STD = 0.02  # of all weights, as in the configs of most models
_UNIFORM = re.compile(r"(?:[a-z+]+-)?w([2-8])(?:g(\d+))?(-asym)?")
_CODEBOOK_BLOCK = 64

Quantize = Callable[[tuple[int, int], torch.Generator], StoredWeight]


def make_dummy_model(
    config: str | Path,
    *,
    dtype: str = "auto",
    scheme: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    activations: WeightActivations = "auto",
) -> Decoder:
    """A decoder of random weights.

    config: a config.json, a directory that holds one, or anything that `resolve_model` knows.
    dtype, device and activations as in `load_model`. scheme: how the linear layers of the blocks
    are stored, such as "w4g128", "gptq-w4g64-asym", "w8", "w8a8", "fp8" or "nf4"; None: in full
    precision. Raises UsageError (an unknown scheme), QuantizationError (groups that do not divide
    rows), and what reading a config or loading a model raises.
    """
    quantize = None if scheme is None else quantize_of(scheme)
    settings = read_config(config)
    router = ModelConfig.from_hf(settings).names.router
    source = DummyWeights(settings, seed, quantize, router)
    return ModelLoader(source, dtype=dtype, device=device, activations=activations).model()


def read_config(name: str | Path) -> dict[str, Any]:
    """config.json of a file, a directory or a model; its own quantization is left out, because a
    scheme is chosen apart. Raises CheckpointError, ModelError.
    """
    path = Path(name).expanduser()
    if path.suffix != ".json":
        path = path if (path / "config.json").is_file() else resolve_model(str(name))
        path = path / "config.json"
    config = read_json(path)
    config.pop("quantization_config", None)
    return config


@dataclass(frozen=True, slots=True)
class DummyWeights:
    """Random tensors under any name (`WeightSource`): norms near 1, everything else near 0.

    quantize: what draws the linear layers, but for the output head and `router`, the name that
    those end with which choose experts
    """

    config: dict[str, Any]
    seed: int
    quantize: Quantize | None = None
    router: str = ""

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Normal numbers, float32; around 1 for the weights of norms."""
        values = torch.randn(shape, generator=self._generator(name)).mul_(_STD)
        return values.add_(1) if len(shape) == 1 and name.endswith(".weight") else values

    def linear(self, module: str, shape: tuple[int, int]) -> Weight:
        """The weight [O, K] of a linear layer, whatever the order of a checkpoint would be."""
        is_router = bool(self.router) and module.endswith(self.router)
        if self.quantize is None or is_router or module == LM_HEAD:
            return self.tensor(f"{module}.weight", shape)
        return self.quantize(shape, self._generator(module))

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def quantize_of(scheme: str) -> Quantize:
    """What draws a weight of a scheme. Raises UsageError for one that there is no kernel for."""
    uniform = _UNIFORM.fullmatch(scheme)
    if uniform is not None:
        bits, group, asymmetric = uniform.groups()
        spec = QuantSpec(int(bits), int(group) if group else None, asymmetric is None)
        return lambda shape, generator: _uniform(shape, spec, generator)
    name = scheme.rpartition("-")[2]
    if name not in _OTHERS:
        raise UsageError(
            f"there are no random weights of the scheme {scheme!r}",
            f"Use wBITS, wBITSgGROUP, wBITSgGROUP-asym, {', '.join(_OTHERS)}, or no scheme.",
        )
    return _OTHERS[name]


def _uniform(
    shape: tuple[int, int], spec: QuantSpec, generator: torch.Generator
) -> QuantizedWeight:
    """Codes that are equally likely, and one scale, so that the weights have the usual spread."""
    codes = _codes(shape, spec.levels, generator)
    groups = (shape[0], spec.num_groups(shape[1]))
    scale = _STD * (12 / (spec.levels**2 - 1)) ** 0.5
    zeros = None if spec.symmetric else torch.full(groups, spec.midpoint, dtype=torch.uint8)
    return QuantizedWeight(codes, torch.full(groups, scale, dtype=torch.float16), zeros, None, spec)


def _w8a8(shape: tuple[int, int], generator: torch.Generator) -> DynamicWeight:
    return DynamicWeight(_uniform(shape, QuantSpec(8, None), generator), "int8")


def _w8a16(shape: tuple[int, int], generator: torch.Generator) -> QuantizedWeight:
    return _uniform(shape, QuantSpec(8, None), generator)


def _int8(shape: tuple[int, int], generator: torch.Generator) -> QuantizedWeight:
    """As bitsandbytes stores it: the scales of rows are float32."""
    weight = _w8a16(shape, generator)
    return replace(weight, scales=weight.scales.float())


def _fp8(shape: tuple[int, int], generator: torch.Generator) -> DynamicWeight:
    values = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    return DynamicWeight(Fp8Weight(values, torch.full((shape[0], 1), _STD)), "fp8")


def _codebook(kind: CodebookKind) -> Quantize:
    def draw(shape: tuple[int, int], generator: torch.Generator) -> CodebookWeight:
        num_blocks = -(-shape[0] * shape[1] // _CODEBOOK_BLOCK)
        largest = torch.full((num_blocks,), 2 * _STD)
        return CodebookWeight(_codes(shape, 16, generator), largest, kind, _CODEBOOK_BLOCK)

    return draw


def _codes(shape: tuple[int, int], levels: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, levels, shape, generator=generator, dtype=torch.uint8)


_OTHERS: Mapping[str, Quantize] = MappingProxyType(
    {
        "w8a16": _w8a16,
        "int8": _int8,
        "w8a8": _w8a8,
        "fp8": _fp8,
        "nf4": _codebook("nf4"),
        "fp4": _codebook("fp4"),
    }
)
