"""The `quantization_config` of compressed-tensors: config groups, targets, ignored modules.

A group's `targets` are module names, "re:" patterns or the class name Linear; `ignore` takes
precedence over all of them. Readers try names first, then patterns, then classes, and vLLM the
parts of a fused layer last: so patterns that are written match the fused layer's name, too, and a
quantized output head, which is no Linear to vLLM and SGLang, is named.
Knows nothing of tensors. The law: what is read from a config is what its own library reads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from llmopt.errors import CheckpointError
from llmopt.formats.dynamic import Activations, DynamicSpec, WeightSpec
from llmopt.formats.fp8 import Fp8Spec
from llmopt.formats.module_patterns import REGEX, check_pattern, cover
from llmopt.formats.overrides import LayerRule
from llmopt.formats.quantized import SUPPORTED_BITS, QuantSpec

Layout = Literal["pack-quantized", "int-quantized", "float-quantized", "naive-quantized"]
_LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_MIXED = "mixed-precision"
_CLASSES = ("Linear", "LinearBase")


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """What a layer's weights are, and in which layout they are stored."""

    spec: WeightSpec
    layout: Layout
    has_g_idx: bool = False

    @property
    def weight_spec(self) -> QuantSpec | Fp8Spec:
        """Of the weights alone."""
        return self.spec.weight if isinstance(self.spec, DynamicSpec) else self.spec

    @property
    def activations(self) -> Activations | None:
        """What inputs are rounded to; None: they are not."""
        return self.spec.activations if isinstance(self.spec, DynamicSpec) else None


Rules = tuple[LayerRule[CompressedScheme], ...]


def config_of_schemes(default: CompressedScheme, rules: Rules) -> dict[str, Any]:
    """The config of layers with the `default` scheme but for those that rules name."""
    named: dict[CompressedScheme, list[str]] = {default: []}
    for rule in rules:
        if rule.setting is not None:
            named.setdefault(rule.setting, []).append(rule.pattern)
    layouts = {scheme.layout for scheme in named}
    groups = [
        _group(scheme, ["Linear"] * (scheme == default) + _targets(patterns))
        for scheme, patterns in named.items()
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": default.layout if len(layouts) == 1 else _MIXED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "ignore": [rule.pattern for rule in rules if rule.setting is None],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def schemes_of_config(config: Mapping[str, Any]) -> tuple[CompressedScheme, Rules]:
    """The scheme of layers that no rule names, and the rules. Raises CheckpointError for a config
    that is unusable or sets what is not supported.
    """
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _unsupported("no config_groups")
    ignored: Rules = tuple(LayerRule(name, None) for name in _patterns(config, "ignore"))
    default: CompressedScheme | None = None
    rules: list[LayerRule[CompressedScheme]] = []
    for group in groups.values():
        scheme = _scheme(group, config.get("format"))
        for target in _patterns(group, "targets"):
            if target in _CLASSES:
                default = scheme
            else:
                rules.append(LayerRule(target, scheme))
    rules.sort(key=lambda rule: (rule.pattern.startswith(REGEX), rule.pattern))
    if default is None:
        default = _scheme(next(iter(groups.values())), config.get("format"))
        rules.append(LayerRule(REGEX, None))
    return default, ignored + tuple(rules)


def _targets(patterns: Sequence[str]) -> list[str]:
    """Targets for modules, under the names of the fused layers, too."""
    written = [pattern for pattern in patterns if pattern.startswith(REGEX)]
    covering = cover([pattern for pattern in patterns if not pattern.startswith(REGEX)])
    return written + [REGEX + expression for expression in covering]


def _group(scheme: CompressedScheme, targets: list[str]) -> dict[str, Any]:
    inputs = None
    if scheme.activations is not None:
        kind = "int" if scheme.activations == "int8" else "float"
        inputs = _arguments(8, kind, strategy="token") | {"dynamic": True}
    return {
        "targets": targets,
        "weights": _weight_arguments(scheme.weight_spec),
        "input_activations": inputs,
        "output_activations": None,
        "format": scheme.layout,
    }


def _weight_arguments(spec: QuantSpec | Fp8Spec) -> dict[str, Any]:
    if isinstance(spec, Fp8Spec):
        return _arguments(8, "float", strategy="channel" if spec.per_row else "tensor")
    strategy = "channel" if spec.group_size is None else "group"
    arguments = _arguments(spec.bits, "int", strategy=strategy)
    return arguments | {"symmetric": spec.symmetric, "group_size": spec.group_size}


def _arguments(bits: int, kind: str, *, strategy: str) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": True,
        "strategy": strategy,
        "group_size": None,
        "dynamic": False,
    }


def _scheme(group: object, default_layout: object) -> CompressedScheme:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        raise _unsupported(f"the preset {group}")
    if group.get("output_activations"):
        raise _unsupported("quantized outputs")
    declared = group.get("format") or default_layout
    layout = next((layout for layout in _LAYOUTS if layout == declared), None)
    if layout is None:
        raise _unsupported(f"the format {declared}")
    weight, inputs = _weight_spec(weights), group.get("input_activations")
    if isinstance(weight, Fp8Spec) == (layout in ("pack-quantized", "int-quantized")):
        raise _unsupported(f"{weights.get('type', 'int')} weights as {layout}")
    spec = DynamicSpec(weight, _activations(inputs)) if inputs else weight
    return CompressedScheme(spec, layout, weights.get("actorder") in ("group", "dynamic"))


def _weight_spec(weights: Mapping[str, Any]) -> QuantSpec | Fp8Spec:
    try:
        bits, group_size = int(weights["num_bits"]), int(weights.get("group_size") or -1)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"quantization_config has no usable 'num_bits' and 'group_size' ({error})",
            "Fetch the checkpoint again.",
        ) from error
    strategy = weights.get("strategy") or ("group" if group_size > 0 else "channel")
    kind, symmetric = weights.get("type", "int"), bool(weights.get("symmetric", True))
    if (kind, bits, symmetric) == ("float", 8, True) and strategy in ("channel", "tensor"):
        return Fp8Spec(per_row=strategy == "channel")
    if kind != "int" or bits not in SUPPORTED_BITS or strategy not in ("channel", "group"):
        raise _unsupported(f"{bits}-bit {kind} weights with one scale per {strategy}")
    return QuantSpec(bits, group_size if strategy == "group" else None, symmetric)


def _activations(inputs: object) -> Activations:
    """What inputs are rounded to: 8 bits, symmetric, with a scale per token found at run time."""
    keys = inputs if isinstance(inputs, Mapping) else {}
    per_token = keys.get("dynamic") is True and keys.get("strategy", "token") == "token"
    if not per_token or keys.get("num_bits", 8) != 8 or keys.get("symmetric", True) is not True:
        raise _unsupported(
            f"inputs of {keys.get('num_bits')} bits with one scale per {keys.get('strategy')}, "
            f"dynamic: {keys.get('dynamic', False)}"
        )
    return "fp8" if keys.get("type") == "float" else "int8"


def _patterns(keys: Mapping[str, Any], name: str) -> Iterator[str]:
    """The names and patterns in a list of the config, checked."""
    found = keys.get(name) or ()
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise _unsupported(f"the {name} {found}")
    return map(check_pattern, found)


def _unsupported(what: str) -> CheckpointError:
    return CheckpointError(
        f"compressed-tensors checkpoints with {what} are not supported",
        "Use one with 2-, 3-, 4- or 8-bit integer weights or FP8 weights with a scale per channel "
        "or tensor, and inputs that are not quantized or quantized per token at run time.",
    )
