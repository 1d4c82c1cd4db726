"""Settings of single layers: those that differ from a checkpoint's default, or are left alone.

Knows nothing of how a format writes them down. The laws: of several rules for a layer the first
one holds, and layers that engines compute as one (q, k, v; gate, up) have the same settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from llmopt.errors import CheckpointError, QuantizationError
from llmopt.formats.dynamic import WeightSpec
from llmopt.formats.module_patterns import FUSED, matches

LM_HEAD = "lm_head"
Setting = TypeVar("Setting")

# Every linear layer of a model by its module's name; None: left in full precision. Empty: the
# default for every layer of the decoder blocks.
Layers = Mapping[str, WeightSpec | None]
ALL_ALIKE: Layers = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LayerRule(Generic[Setting]):
    """What holds for the modules that a pattern stands for; None: they are not quantized."""

    pattern: str
    setting: Setting | None


def setting_of(
    rules: Sequence[LayerRule[Setting]], module: str, default: Setting
) -> Setting | None:
    """The first rule's setting for a module, or the default."""
    found = (rule for rule in rules if matches(rule.pattern, module))
    rule = next(found, None)
    return default if rule is None else rule.setting


def required_setting(rules: Sequence[LayerRule[Setting]], module: str, default: Setting) -> Setting:
    """The setting of a module whose quantized tensors exist. Raises CheckpointError if there is
    none.
    """
    setting = setting_of(rules, module, default)
    if setting is None:
        raise CheckpointError(
            f"layer {module} is quantized, and quantization_config says that it is not",
            "The config and the weights are from different checkpoints; fetch it again.",
        )
    return setting


def by_setting(layers: Layers) -> dict[WeightSpec | None, list[str]]:
    """The modules of each setting, in the order in which they are named."""
    modules: dict[WeightSpec | None, list[str]] = {}
    for module, setting in layers.items():
        modules.setdefault(setting, []).append(module)
    return modules


def unquantized(layers: Layers) -> list[str]:
    """The modules that are left alone; the output head is one of them unless it has a spec."""
    skipped = [module for module, setting in layers.items() if setting is None]
    return skipped if LM_HEAD in layers else [*skipped, LM_HEAD]


def check_fused(layers: Layers) -> None:
    """Raise QuantizationError, naming them, where layers that are computed as one differ."""
    for module, setting in layers.items():
        parent, _, name = module.rpartition(".")
        for parts in FUSED.values():
            if name != parts[0]:
                continue
            siblings = [f"{parent}.{part}" for part in parts if f"{parent}.{part}" in layers]
            differing = [other for other in siblings if layers[other] != setting]
            if differing:
                raise QuantizationError(
                    f"{module} is to be stored as {_describe(setting)} and "
                    f"{', '.join(f'{m} as {_describe(layers[m])}' for m in differing)}, but "
                    f"engines compute {', '.join(parts)} as one layer",
                    "Give them the same bits and group size, or leave all of them alone.",
                )


def _describe(setting: WeightSpec | None) -> str:
    return "full precision" if setting is None else setting.label("").removeprefix("-")
