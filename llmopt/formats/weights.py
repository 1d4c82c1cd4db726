"""Every format of quantized weights: which one a checkpoint is in, and which ones hold a spec.

The only place that knows them all; knows nothing of models. The law: whoever reads quantized
layers, counts their bits or names their scheme asks here.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch

from llmopt.errors import CheckpointError, QuantizationError
from llmopt.formats.awq import AwqFormat
from llmopt.formats.bitsandbytes import bitsandbytes_format
from llmopt.formats.checkpoint import CheckpointReader
from llmopt.formats.compressed_tensors import CompressedTensorsFormat
from llmopt.formats.dynamic import WeightSpec
from llmopt.formats.gguf import GgufCheckpoint, GgufWeights
from llmopt.formats.gptq import GptqFormat
from llmopt.formats.overrides import ALL_ALIKE, Layers, check_fused
from llmopt.formats.quantized import StoredWeight

Checkpoint = CheckpointReader | GgufCheckpoint
FormatName = Literal["gptq", "awq", "compressed-tensors"]
_DTYPE_SCHEMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class WeightFormat(Protocol):
    """How all quantized layers of one checkpoint are stored."""

    limits: ClassVar[str]  # what it can hold, for messages
    suffixes: ClassVar[tuple[str, ...]]  # of the tensors that a quantized layer may have
    marker: ClassVar[str]  # suffix of the tensor that tells a quantized layer from another one
    config_file: ClassVar[str | None]  # where the config is expected besides config.json

    def label(self, method: str) -> str:
        """The scheme's name, such as "gptq-w4g64"; `method` chose the codes."""

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config` for config.json; `method` chose the codes."""

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The named tensors of one layer."""

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> StoredWeight:
        """One layer from its tensors, by name. Raises CheckpointError."""

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shapes of its tensors, by name."""


_FORMATS: Mapping[str, type[GptqFormat] | type[AwqFormat] | type[CompressedTensorsFormat]] = {
    "gptq": GptqFormat,
    "awq": AwqFormat,
    "compressed-tensors": CompressedTensorsFormat,
}
_READERS: Mapping[str, Callable[[Mapping[str, Any]], WeightFormat]] = {
    **{name: weight_format.from_config for name, weight_format in _FORMATS.items()},
    "bitsandbytes": bitsandbytes_format,
}


class QuantizedWeights:
    """The quantized layers of a checkpoint."""

    def __init__(self, reader: CheckpointReader, weight_format: WeightFormat, method: str) -> None:
        self._reader = reader
        self._format = weight_format
        self._method = method

    @property
    def scheme(self) -> str:
        """Such as "gptq-w4g64"; the method is the one that chose the codes."""
        return self._format.label(self._method)

    def __contains__(self, module: str) -> bool:
        return f"{module}.{self._format.marker}" in self._reader

    def weight(self, module: str) -> StoredWeight:
        """Read one layer. Raises CheckpointError."""
        return self._format.unpack(module, self._reader.tensor)

    def module_of(self, tensor_name: str) -> str | None:
        """The quantized layer that a tensor is a part of, or None."""
        modules = (
            tensor_name.removesuffix(f".{suffix}")
            for suffix in self._format.suffixes
            if tensor_name.endswith(f".{suffix}")
        )
        return next((module for module in modules if module in self), None)

    def num_weights(self, module: str) -> int:
        """Weights of one layer, from the header."""
        return self._format.num_weights(module, self._reader.shape)


def quantized_weights(reader: Checkpoint) -> QuantizedWeights | GgufWeights | None:
    """The quantized layers of a checkpoint, or None for a full-precision one. Raises
    CheckpointError for a format, or a setting of one, that is not supported.
    """
    if isinstance(reader, GgufCheckpoint):
        return reader.quantized()
    config = quantization_config(reader.config)
    if config is None:
        return None
    name = str(config.get("quant_method"))
    if name not in _READERS:
        raise CheckpointError(
            f"checkpoints quantized with {name} are not read yet",
            f"Use one in the format {', '.join(_READERS)}, or a full-precision one.",
        )
    method = (_mapping(config, "meta") or {}).get("method") or name
    return QuantizedWeights(reader, _READERS[name](config), str(method))


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says of quantized weights, or None for a full-precision checkpoint. Raises
    CheckpointError for what cannot be understood.
    """
    return _mapping(config, "quantization_config")


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    found = config.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise CheckpointError(
            f"config.json has a {key} that is no JSON object: {str(found)[:80]!r}",
            "Fetch the checkpoint again.",
        )
    return found


def scheme(reader: Checkpoint, dtype: torch.dtype) -> str:
    """The scheme's name: "gptq-w4g64" for a quantized checkpoint, else after the dtype: "bf16".

    The method is the one that made the codes: a GPTQ file may hold round-to-nearest weights.
    """
    quantized = quantized_weights(reader)
    return _DTYPE_SCHEMES[dtype] if quantized is None else quantized.scheme


def choose_format(name: FormatName, spec: WeightSpec, layers: Layers = ALL_ALIKE) -> WeightFormat:
    """The format that writes `spec`, and the specs of single `layers` (by the module's name; None:
    left alone). QuantizationError, with those formats that can, if it cannot, or if layers differ
    that engines compute as one.
    """
    check_fused(layers)
    weight_format = _FORMATS[name].for_spec(spec, layers)
    if weight_format is None:
        fitting = [
            other for other in get_args(FormatName) if _FORMATS[other].for_spec(spec, layers)
        ]
        specs = [spec, *(setting for setting in layers.values() if setting is not None)]
        wanted = " and ".join(dict.fromkeys(each.label("weights") for each in specs))
        raise QuantizationError(
            f"{name} checkpoints hold {_FORMATS[name].limits}, not {wanted}",
            f"Formats that hold it: {', '.join(fitting) or 'none of those written here'}.",
        )
    return weight_format
