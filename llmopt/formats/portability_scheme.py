"""How each layer of a checkpoint is stored, from its `quantization_config` alone.

Knows the config keys of every format, per-layer overrides included; knows nothing of engines.
Law: a layer that the config exempts has no scheme.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.errors import CheckpointError
from llmopt.formats.portability_rules import Activations, Storage

_STORAGES: Mapping[str, Storage] = {
    "pack-quantized": "pack-quantized",
    "int-quantized": "int-quantized",
    "float-quantized": "float-quantized",
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one layer is stored.

    bits: 0 for GGUF, whose blocks say it themselves
    group_size: None for one group per output, or where the format has blocks of its own
    zeros: whether zero points are stored; zero_version: of GPTQ's, 1 or 2
    act_order: whether the columns of a group may lie anywhere
    activations: how the layer's inputs are quantized at run time, or None
    """

    storage: Storage
    bits: int
    group_size: int | None = None
    zeros: bool = False
    zero_version: int = 1
    act_order: bool = False
    activations: Activations | None = None


def module_schemes(
    config: Mapping[str, Any], modules: Iterable[str], format: str
) -> dict[str, Scheme]:
    """The scheme of each of the modules that is quantized.

    config: config.json; format: "gptq", "awq", "compressed-tensors", "bitsandbytes" or "gguf"
    Raises `CheckpointError` for another format and for a `quantization_config` that is unusable.
    """
    if format == "gguf":
        return dict.fromkeys(modules, Scheme("gguf", 0))
    quant = config.get("quantization_config")
    scheme_of = _SCHEMES.get(format)
    if scheme_of is None or not isinstance(quant, Mapping) or quant.get("quant_method") != format:
        raise CheckpointError(
            f"config.json has no quantization_config of the format {format}",
            "Give the config of a quantized checkpoint.",
        )
    try:
        found = {module: scheme_of(quant, module) for module in modules}
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"quantization_config has no usable value for {error}", "Fetch the checkpoint again."
        ) from error
    return {module: scheme for module, scheme in found.items() if scheme is not None}


def _gptq(quant: Mapping[str, Any], module: str) -> Scheme | None:
    settings = {key: quant[key] for key in ("bits", "group_size", "sym", "desc_act")}
    for pattern, override in (quant.get("dynamic") or {}).items():
        if re.match(pattern.removeprefix("+:").removeprefix("-:"), module):
            if pattern.startswith("-:"):
                return None
            settings |= override
            break
    group_size = _group_size(settings["group_size"])
    return Scheme(
        "gptq",
        int(settings["bits"]),
        group_size,
        zeros=not settings["sym"],
        zero_version=2 if quant.get("checkpoint_format") == "gptq_v2" else 1,
        act_order=bool(settings["desc_act"]) and group_size is not None,
    )


def _awq(quant: Mapping[str, Any], module: str) -> Scheme | None:
    if any(part in module for part in quant.get("modules_to_not_convert") or ()):
        return None
    bits = quant["bits"] if "bits" in quant else quant["w_bit"]
    size = quant["group_size"] if "group_size" in quant else quant["q_group_size"]
    return Scheme("awq", int(bits), _group_size(size), zeros=bool(quant.get("zero_point", True)))


def _compressed_tensors(quant: Mapping[str, Any], module: str) -> Scheme | None:
    if any(_matches(pattern, module) for pattern in quant.get("ignore") or ()):
        return None
    groups = list(quant["config_groups"].values())
    named = [g for g in groups if any(_matches(target, module) for target in g["targets"])]
    group = next(iter(named or [g for g in groups if "Linear" in g["targets"]]), None)
    if group is None:
        return None
    weights, inputs = group["weights"], group.get("input_activations")
    activations: Activations = "fp8" if (inputs or {}).get("type") == "float" else "int8"
    return Scheme(
        _STORAGES[group.get("format") or quant["format"]],
        int(weights["num_bits"]),
        _group_size(weights.get("group_size") or -1),
        zeros=not weights.get("symmetric", True),
        act_order=weights.get("actorder") in ("group", "dynamic"),
        activations=activations if inputs else None,
    )


def _bitsandbytes(quant: Mapping[str, Any], module: str) -> Scheme | None:
    if any(part in module for part in quant.get("llm_int8_skip_modules") or ()):
        return None
    return Scheme("bitsandbytes", 8 if quant.get("load_in_8bit") else 4)


_SCHEMES = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
}


def _matches(pattern: str, module: str) -> bool:
    """compressed-tensors' targets: a name, or a regular expression after `re:`."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern == module


def _group_size(value: object) -> int | None:
    size = int(str(value))
    return None if size == -1 else size
