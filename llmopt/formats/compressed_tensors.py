"""The compressed-tensors layouts of integer and FP8 weights (vLLM's llm-compressor; read by
transformers, vLLM and SGLang).

Per linear layer with K inputs, O outputs and G groups:

    pack-quantized                               int-quantized, float-quantized, naive-quantized
    weight_packed      int32 [O, K * bits / 32]  weight             int8 or float8_e4m3fn [O, K]
    weight_scale       float [O, G]              weight_scale       float   [O, G], [O, 1] or [1]
    weight_shape       int64 [2] = (O, K)
    weight_zero_point  int32 [O * bits / 32, G]  weight_zero_point  int8    [O, G]
    weight_g_idx       int32 [K]

Words hold the unsigned codes, packed along K without gaps, and zero points, packed along O; bytes
hold both less 2^(bits - 1). Zero points exist only where the weights are asymmetric, weight_g_idx
only in older files with `actorder: group`. Inputs that are quantized per token at run time are
`input_activations` of the config; nothing of them is stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.compressed_tensors_config import (
    CompressedScheme,
    Rules,
    config_of_schemes,
    schemes_of_config,
)
from llmopt.formats.dynamic import DynamicSpec, DynamicWeight, WeightSpec
from llmopt.formats.fp8 import Fp8Spec, Fp8Weight
from llmopt.formats.groups import check_groups, group_index, read_matrix
from llmopt.formats.overrides import (
    ALL_ALIKE,
    LM_HEAD,
    LayerRule,
    Layers,
    required_setting,
)
from llmopt.formats.packing import pack_words, unpack_words
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight

_SKIP_HEAD: Rules = (LayerRule(LM_HEAD, None),)


@dataclass(frozen=True, slots=True)
class CompressedTensorsFormat:
    """How a compressed-tensors checkpoint stores its quantized layers (`WeightFormat`).

    scheme: of the layers that no rule names
    rules: of those that differ, or are left alone
    """

    scheme: CompressedScheme
    rules: Rules = _SKIP_HEAD

    limits: ClassVar[str] = "2-, 3-, 4- and 8-bit integer weights, W8A8 rows and FP8"
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
    def for_spec(
        cls, spec: WeightSpec, layers: Layers = ALL_ALIKE
    ) -> "CompressedTensorsFormat | None":
        """The format that writes this spec, and those of `layers`; None if there is none."""
        default = _scheme_that_writes(spec)
        if default is None:
            return None
        rules = [] if LM_HEAD in layers else list(_SKIP_HEAD)
        for module, setting in layers.items():
            scheme = None if setting is None else _scheme_that_writes(setting)
            if setting is not None and scheme is None:
                return None
            if scheme != default or module == LM_HEAD:
                rules.append(LayerRule(module, scheme))
        return cls(default, tuple(rules))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "CompressedTensorsFormat":
        """From a `quantization_config`; CheckpointError if it is unusable or not supported."""
        default, rules = schemes_of_config(config)
        return cls(default, rules)

    def label(self, method: str) -> str:
        """The scheme's name, such as "gptq-w4g64"; `method` chose the codes."""
        specs = {rule.setting.spec for rule in self.rules if rule.setting is not None}
        return self.scheme.spec.label(method) + ("-mixed" if specs - {self.scheme.spec} else "")

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config`, with the keys that compressed-tensors and vLLM read."""
        settings = config_of_schemes(self.scheme, self.rules)
        return {**settings, "meta": {"quantizer": ["llmopt"], "method": method}}

    def scheme_of(self, module: str) -> CompressedScheme:
        """How a quantized layer is stored. Raises CheckpointError if the config leaves it out."""
        return required_setting(self.rules, module, self.scheme)

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The tensors of one layer, named `module.weight_packed` and so on.

        Scales of rows are stored as float32: they are few, and readers multiply in their type.
        """
        scheme = self.scheme_of(module)
        if isinstance(weight, DynamicWeight):
            assert weight.spec == scheme.spec, "weights are what the config says"
            weight = weight.weight
        if isinstance(weight, Fp8Weight):
            assert weight.spec == scheme.weight_spec, "weights are what the config says"
            scales = weight.scales if weight.spec.per_row else weight.scales.flatten()
            return {f"{module}.weight": weight.values, f"{module}.weight_scale": scales}
        assert isinstance(weight, QuantizedWeight), "the format holds uniform groups"
        assert weight.spec == scheme.weight_spec, "weights are what the config says"
        assert weight.g_idx is None, "current readers know no g_idx"
        if scheme.layout == "pack-quantized":
            return _pack_words(module, weight)
        tensors = {
            f"{module}.weight": _signed(weight.codes, weight.spec),
            f"{module}.weight_scale": weight.scales.float(),
        }
        if weight.zeros is not None:
            tensors[f"{module}.weight_zero_point"] = _signed(weight.zeros, weight.spec)
        return tensors

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> StoredWeight:
        """Read one layer. Raises CheckpointError on inconsistent shapes."""
        scheme = self.scheme_of(module)
        if isinstance(scheme.weight_spec, Fp8Spec):
            weight: Fp8Weight | QuantizedWeight = _unpack_fp8(module, tensor, scheme.weight_spec)
        else:
            weight = _unpack_integers(module, tensor, scheme, scheme.weight_spec)
        activations = scheme.activations
        return weight if activations is None else DynamicWeight(weight, activations)

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shapes in the header."""
        scheme = self.scheme_of(module)
        if scheme.layout != "pack-quantized":
            rows, columns = shape(f"{module}.weight")
            return rows * columns
        assert isinstance(scheme.weight_spec, QuantSpec), "words hold integers"
        rows, words = shape(f"{module}.weight_packed")
        return rows * (words * 32 // scheme.weight_spec.bits)


def _scheme_that_writes(spec: WeightSpec) -> CompressedScheme | None:
    if isinstance(spec, QuantSpec):
        return CompressedScheme(spec, "pack-quantized")
    if isinstance(spec, Fp8Spec):
        return CompressedScheme(spec, "naive-quantized")
    if spec.weight == Fp8Spec() and spec.activations == "fp8":
        return CompressedScheme(spec, "float-quantized")
    if spec == DynamicSpec(QuantSpec(8, None), "int8"):
        return CompressedScheme(spec, "int-quantized")
    return None


def _pack_words(module: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    bits = weight.spec.bits
    tensors = {
        f"{module}.weight_packed": pack_words(weight.codes.T, bits).T.contiguous(),
        f"{module}.weight_scale": weight.scales,
        f"{module}.weight_shape": torch.tensor(weight.shape),
    }
    if weight.zeros is not None:
        tensors[f"{module}.weight_zero_point"] = pack_words(weight.zeros, bits)
    return tensors


def _unpack_fp8(module: str, tensor: Callable[[str], torch.Tensor], spec: Fp8Spec) -> Fp8Weight:
    values, scales = read_matrix(module, "weight", tensor), tensor(f"{module}.weight_scale")
    expected = len(values) if spec.per_row else 1
    if values.dtype != torch.float8_e4m3fn or scales.numel() != expected:
        raise CheckpointError(
            f"layer {module} has {values.dtype} values {list(values.shape)} with scales "
            f"{list(scales.shape)} where e4m3 values with {expected} scales were expected",
            "The tensors contradict quantization_config; fetch or make the checkpoint again.",
        )
    return Fp8Weight(values, scales.reshape(expected, 1), spec)


def _unpack_integers(
    module: str,
    tensor: Callable[[str], torch.Tensor],
    scheme: CompressedScheme,
    spec: QuantSpec,
) -> QuantizedWeight:
    scales = tensor(f"{module}.weight_scale")
    zeros = None if spec.symmetric else read_matrix(module, "weight_zero_point", tensor)
    if scheme.layout == "pack-quantized":
        rows, columns = _declared_shape(module, tensor(f"{module}.weight_shape"))
        words = read_matrix(module, "weight_packed", tensor).T.contiguous()
        codes = unpack_words(words, spec.bits)[:columns].T.contiguous()
        zeros = None if zeros is None else unpack_words(zeros, spec.bits)[:rows]
        _check_shape(module, codes, (rows, columns))
    else:
        codes = _unsigned(read_matrix(module, "weight", tensor), spec)
        zeros = None if zeros is None else _unsigned(zeros, spec)
    check_groups(module, codes, scales, scales if zeros is None else zeros, spec)
    g_idx = None
    if scheme.has_g_idx:
        g_idx = tensor(f"{module}.weight_g_idx")
        g_idx = group_index(module, g_idx, spec, codes.shape[1])
    return QuantizedWeight(codes, scales, zeros, g_idx, spec)


def _signed(codes: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    return (codes.to(torch.int16) - spec.midpoint).to(torch.int8)


def _unsigned(codes: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    return (codes.to(torch.int16) + spec.midpoint).to(torch.uint8)


def _declared_shape(module: str, stored: torch.Tensor) -> tuple[int, int]:
    if stored.shape != (2,):
        raise CheckpointError(
            f"layer {module} has a weight_shape of {stored.numel()} numbers where 2 were expected",
            "The file is damaged; fetch or make the checkpoint again.",
        )
    rows, columns = map(int, stored.tolist())
    return rows, columns


def _check_shape(module: str, codes: torch.Tensor, declared: tuple[int, int]) -> None:
    if tuple(codes.shape) != declared:
        raise CheckpointError(
            f"layer {module} has codes for {list(codes.shape)} weights and a weight_shape of "
            f"{list(declared)}",
            "The file is damaged; fetch or make the checkpoint again.",
        )
