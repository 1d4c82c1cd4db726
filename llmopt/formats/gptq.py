"""The GPTQ checkpoint layout, versions 1 and 2.

Per linear layer with K inputs, O outputs and G groups (AutoGPTQ; read by transformers, vLLM,
SGLang, TGI, exllama):

    qweight  int32   [K * bits / 32, O]   codes packed along K
    qzeros   int32   [G, O * bits / 32]   zero points packed along O
    scales   float16 [G, O]
    g_idx    int32   [K]                  the group of each input

Version 1 stores each zero point minus one and so cannot hold a zero point of 0; version 2 stores
the zero point itself. Symmetric weights are written as version 1, which every reader takes,
asymmetric ones as version 2. Reading looks at the data as well as at the config, because files
exist that claim version 1 and hold version 2.

Layers that differ are named in the config's `dynamic` (GPTQModel, vLLM, SGLang): "+:regex" with
other settings, "-:regex" for layers that are left alone; of several the first one holds. The output
head is quantized only where `lm_head` is true.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llmopt.errors import CheckpointError
from llmopt.formats.dynamic import WeightSpec
from llmopt.formats.groups import check_groups, group_index, read_matrix
from llmopt.formats.module_patterns import REGEX, check_pattern, cover
from llmopt.formats.overrides import (
    ALL_ALIKE,
    LM_HEAD,
    LayerRule,
    Layers,
    by_setting,
    required_setting,
)
from llmopt.formats.packing import pack_words, unpack_words
from llmopt.formats.quantized import QuantizedWeight, QuantSpec, StoredWeight


@dataclass(frozen=True, slots=True)
class GptqFormat:
    """How a GPTQ checkpoint stores its quantized layers (`WeightFormat`).

    spec: of the layers that no rule names
    rules: of those that differ
    """

    spec: QuantSpec
    version: int
    rules: tuple[LayerRule[QuantSpec], ...] = ()
    has_lm_head: bool = False

    limits: ClassVar[str] = "2-, 3-, 4- and 8-bit integer weights"
    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    marker: ClassVar[str] = "qweight"
    config_file: ClassVar[str | None] = "quantize_config.json"

    @classmethod
    def for_spec(cls, spec: WeightSpec, layers: Layers = ALL_ALIKE) -> "GptqFormat | None":
        """The format that writes this spec, and those of `layers`; None if GPTQ cannot."""
        rules = []
        for setting, modules in by_setting(layers).items():
            if setting is not None and not isinstance(setting, QuantSpec):
                return None
            named = [module for module in modules if setting is not None or module != LM_HEAD]
            if setting != spec:
                rules += [LayerRule(REGEX + pattern, setting) for pattern in cover(named)]
        if not isinstance(spec, QuantSpec):
            return None
        specs = [spec, *(rule.setting for rule in rules if rule.setting is not None)]
        version = 1 if all(each.symmetric for each in specs) else 2
        return cls(spec, version, tuple(rules), layers.get(LM_HEAD) is not None)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "GptqFormat":
        """From a `quantization_config`; CheckpointError if it is unusable."""
        spec = _spec(config)
        version = 2 if config.get("checkpoint_format") == "gptq_v2" else 1
        dynamic = config.get("dynamic") or {}
        if not isinstance(dynamic, Mapping):
            raise _unusable_dynamic(dynamic)
        rules = tuple(_rule(pattern, keys, config) for pattern, keys in dynamic.items())
        return cls(spec, version, rules, bool(config.get("lm_head", False)))

    def label(self, method: str) -> str:
        """The scheme's name, such as "gptq-w4g64"; `method` chose the codes."""
        mixed = any(rule.setting is not None for rule in self.rules)
        return self.spec.label(method) + ("-mixed" if mixed else "")

    def config(self, method: str) -> dict[str, Any]:
        """`quantization_config`, with the keys that transformers, vLLM and SGLang read."""
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            **_keys(self.spec),
            "desc_act": False,
            "true_sequential": True,
            "lm_head": self.has_lm_head,
            "dynamic": dict(map(_dynamic_entry, self.rules)),
            "meta": {"quantizer": ["llmopt"], "method": method},
        }

    def spec_of(self, module: str) -> QuantSpec:
        """The spec of a quantized layer. Raises CheckpointError if the config leaves it out."""
        return required_setting(self.rules, module, self.spec)

    def pack(self, module: str, weight: StoredWeight) -> dict[str, torch.Tensor]:
        """The tensors of one layer, named `module.qweight` and so on."""
        assert isinstance(weight, QuantizedWeight), "the format holds uniform groups"
        spec = weight.spec
        assert spec == self.spec_of(module), "weights are what the config says"
        assert spec.symmetric or self.version == 2, "version 1 cannot hold a zero point of 0"
        columns = weight.shape[1]
        zeros = weight.zero_points()
        stored = zeros if self.version == 2 else zeros - 1
        g_idx = weight.g_idx
        if g_idx is None:
            g_idx = torch.arange(columns, dtype=torch.int32) // spec.columns_per_group(columns)
        return {
            f"{module}.qweight": pack_words(weight.codes.T, spec.bits).contiguous(),
            f"{module}.qzeros": pack_words(stored, spec.bits).T.contiguous(),
            f"{module}.scales": weight.scales.T.contiguous(),
            f"{module}.g_idx": g_idx.to(torch.int32),
        }

    def unpack(self, module: str, tensor: Callable[[str], torch.Tensor]) -> QuantizedWeight:
        """Read one layer. Raises CheckpointError on inconsistent shapes."""
        spec = self.spec_of(module)
        codes = unpack_words(read_matrix(module, "qweight", tensor), spec.bits).T.contiguous()
        scales = read_matrix(module, "scales", tensor).T.contiguous()
        stored = unpack_words(read_matrix(module, "qzeros", tensor).T.contiguous(), spec.bits)
        check_groups(module, codes, scales, stored, spec)
        zeros = self._zero_points(stored, spec)
        if spec.symmetric and not bool((zeros == spec.midpoint).all()):
            raise CheckpointError(
                f"layer {module} is declared symmetric but has zero points other than "
                f"{spec.midpoint}",
                "Set sym to false in its quantization_config, or make the checkpoint again.",
            )
        return QuantizedWeight(
            codes=codes,
            scales=scales,
            zeros=None if spec.symmetric else zeros,
            g_idx=group_index(module, tensor(f"{module}.g_idx"), spec, codes.shape[1]),
            spec=spec,
        )

    def num_weights(self, module: str, shape: Callable[[str], tuple[int, ...]]) -> int:
        """Weights of one layer, from the shapes in the header."""
        words, rows = shape(f"{module}.qweight")
        return words * 32 // self.spec_of(module).bits * rows

    def _zero_points(self, stored: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
        """Undo version 1's minus one; symmetric data says by itself whether it was applied."""
        version = self.version
        if spec.symmetric and bool((stored == stored.flatten()[0]).all()):
            version = 2 if int(stored.flatten()[0]) == spec.midpoint else 1
        if version == 2:
            return stored
        return ((stored.to(torch.int16) + 1) % spec.levels).to(torch.uint8)


def _spec(config: Mapping[str, Any]) -> QuantSpec:
    return spec_of_config(config, symmetric=bool(config.get("sym", True)))


def _keys(spec: QuantSpec) -> dict[str, Any]:
    return {
        "bits": spec.bits,
        "group_size": spec.group_size if spec.group_size is not None else -1,
        "sym": spec.symmetric,
    }


def _dynamic_entry(rule: LayerRule[QuantSpec]) -> tuple[str, dict[str, Any]]:
    expression = rule.pattern.removeprefix(REGEX)
    if rule.setting is None:
        return f"-:{expression}", {}
    return f"+:{expression}", _keys(rule.setting)


def _rule(pattern: object, keys: object, config: Mapping[str, Any]) -> LayerRule[QuantSpec]:
    """One entry of `dynamic`; what it does not set is as in the rest of the config."""
    if not isinstance(pattern, str) or not isinstance(keys, Mapping):
        raise _unusable_dynamic({pattern: keys})
    expression = check_pattern(REGEX + pattern.removeprefix("-:").removeprefix("+:"))
    return LayerRule(expression, None if pattern.startswith("-:") else _spec({**config, **keys}))


def _unusable_dynamic(found: object) -> CheckpointError:
    return CheckpointError(
        f"quantization_config has an unusable 'dynamic': {str(found)[:80]}",
        "Fetch the checkpoint again; it should map patterns of layers to their settings.",
    )


def spec_of_config(config: Mapping[str, Any], *, symmetric: bool) -> QuantSpec:
    """The spec in the keys `bits` and `group_size` (-1: one group per output row), which GPTQ and
    AWQ share. Raises CheckpointError.
    """
    try:
        bits, group_size = int(config["bits"]), int(config["group_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"quantization_config has no usable 'bits' and 'group_size' ({error})",
            "Fetch the checkpoint again, or restore quantize_config.json's values in config.json.",
        ) from error
    return QuantSpec(bits, group_size if group_size > 0 else None, symmetric)
