"""The compressed-tensors layouts of integer weights (vLLM's llm-compressor; read by transformers).

Per linear layer with K inputs, O outputs and G groups:

    pack-quantized                               int-quantized (8 bits, one group per output row)
    weight_packed      int32 [O, K * bits / 32]  weight             int8    [O, K]
    weight_scale       float [O, G]              weight_scale       float   [O, 1]
    weight_shape       int64 [2] = (O, K)
    weight_zero_point  int32 [O * bits / 32, G]  weight_zero_point  int8    [O, 1]
    weight_g_idx       int32 [K]

Words hold the unsigned codes, packed along K, and zero points, packed along O; bytes hold both less
128. Zero points exist only where the weights are asymmetric, weight_g_idx only in older files with
`actorder: group`. Files with one setting for all layers are read, if they leave activations alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.groups import check_groups, group_index
from llmopt.formats.packing import pack_words, unpack_words
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight

Layout = Literal["pack-quantized", "int-quantized"]
BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class CompressedTensorsFormat:
    """How a compressed-tensors checkpoint stores its quantized layers (`WeightFormat`)."""

    spec: QuantSpec
    layout: Layout
    has_g_idx: bool = False

    limits: ClassVar[str] = "4- and 8-bit weights"
    suffixes: ClassVar[tuple[str, ...]] = (
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
    )
    marker: ClassVar[str] = "weight_scale"
    config_file: ClassVar[str | None] = None

    @classmethod
    def for_spec(cls, spec: QuantSpec) -> "CompressedTensorsFormat | None":
        """The packed format that writes this spec; None if there is none."""
        return cls(spec, "pack-quantized") if spec.bits in BITS else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "CompressedTensorsFormat":
        """From a `quantization_config`; CheckpointError if it is unusable or not supported."""
        layout = config.get("format")
        groups = config.get("config_groups")
        if layout not in ("pack-quantized", "int-quantized"):
            raise _unsupported(f"the format {layout}")
        if not isinstance(groups, Mapping) or len(groups) != 1:
            raise _unsupported("config_groups with other than one group")
        (group,) = groups.values()
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise _unsupported(f"the preset {group}")
        if group.get("input_activations") or group.get("output_activations"):
            raise _unsupported("quantized activations")
        spec = _weight_spec(weights)
        if spec.bits not in BITS or (layout == "int-quantized" and spec.bits != 8):
            raise _unsupported(f"{spec.bits}-bit weights as {layout}")
        return cls(spec, layout, weights.get("actorder") in ("group", "dynamic"))

    def label(self, method: str) -> str:
        """The scheme's name, such as "gptq-w4g64"; `method` chose the codes."""
        return self.spec.label(method)

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config`, with the keys that compressed-tensors and vLLM read."""
        weights = {
            "num_bits": self.spec.bits,
            "type": "int",
            "symmetric": self.spec.symmetric,
            "strategy": "channel" if self.spec.group_size is None else "group",
            "group_size": self.spec.group_size,
            "dynamic": False,
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": self.layout,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.layout,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            "meta": {"quantizer": ["llmopt"], "method": method},
        }

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The tensors of one layer, named `module.weight_packed` and so on."""
        assert isinstance(weight, QuantizedWeight), "the format holds uniform groups"
        assert weight.spec == self.spec, "one checkpoint, one spec"
        assert weight.g_idx is None, "current readers know no g_idx"
        tensors = {f"{module}.weight_scale": weight.scales}
        if self.layout == "int-quantized":
            tensors[f"{module}.weight"] = _signed(weight.codes)
        else:
            packed = pack_words(weight.codes.T, self.spec.bits).T.contiguous()
            tensors[f"{module}.weight_packed"] = packed
            tensors[f"{module}.weight_shape"] = torch.tensor(weight.shape)
        if weight.zeros is not None:
            tensors[f"{module}.weight_zero_point"] = (
                _signed(weight.zeros)
                if self.layout == "int-quantized"
                else pack_words(weight.zeros, self.spec.bits)
            )
        return tensors

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> QuantizedWeight:
        """Read one layer. Raises CheckpointError on inconsistent shapes."""
        scales = tensor(f"{module}.weight_scale")
        zeros = None if self.spec.symmetric else tensor(f"{module}.weight_zero_point")
        if self.layout == "int-quantized":
            codes = _unsigned(tensor(f"{module}.weight"))
            zeros = None if zeros is None else _unsigned(zeros)
        else:
            rows, columns = tensor(f"{module}.weight_shape").tolist()
            words = tensor(f"{module}.weight_packed").T.contiguous()
            codes = unpack_words(words, self.spec.bits)[:columns].T.contiguous()
            zeros = None if zeros is None else unpack_words(zeros, self.spec.bits)[:rows]
            _check_shape(module, codes, (rows, columns))
        check_groups(module, codes, scales, scales if zeros is None else zeros, self.spec)
        g_idx = None
        if self.has_g_idx:
            g_idx = tensor(f"{module}.weight_g_idx")
            g_idx = group_index(module, g_idx, self.spec, codes.shape[1])
        return QuantizedWeight(codes, scales, zeros, g_idx, self.spec)

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shapes in the header."""
        if self.layout == "int-quantized":
            rows, columns = shape(f"{module}.weight")
            return rows * columns
        rows, words = shape(f"{module}.weight_packed")
        return rows * (words * 32 // self.spec.bits)


def _weight_spec(weights: Mapping[str, Any]) -> QuantSpec:
    try:
        bits, group_size = int(weights["num_bits"]), int(weights.get("group_size") or -1)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"quantization_config has no usable 'num_bits' and 'group_size' ({error})",
            "Fetch the checkpoint again.",
        ) from error
    strategy = weights.get("strategy") or ("group" if group_size > 0 else "channel")
    kind = weights.get("type", "int")
    if kind != "int" or strategy not in ("channel", "group"):
        raise _unsupported(f"{kind} weights with one scale per {strategy}")
    size = group_size if strategy == "group" else None
    return QuantSpec(bits, size, bool(weights.get("symmetric", True)))


def _signed(codes: torch.Tensor) -> torch.Tensor:
    return (codes.to(torch.int16) - 128).to(torch.int8)


def _unsigned(codes: torch.Tensor) -> torch.Tensor:
    return (codes.to(torch.int16) + 128).to(torch.uint8)


def _check_shape(module: str, codes: torch.Tensor, declared: tuple[int, int]) -> None:
    if tuple(codes.shape) != declared:
        raise CheckpointError(
            f"layer {module} has codes for {list(codes.shape)} weights and a weight_shape of "
            f"{list(declared)}",
            "The file is damaged; fetch or make the checkpoint again.",
        )


def _unsupported(what: str) -> CheckpointError:
    return CheckpointError(
        f"compressed-tensors checkpoints with {what} are not supported",
        "Use one with 4- or 8-bit integer weights, one setting for all layers, and activations "
        "that are not quantized.",
    )
