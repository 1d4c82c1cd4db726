"""Other settings for some modules: `PATTERN=bits:8,group:32` or `PATTERN=skip`.

Data and its resolution; knows nothing of files or methods.
Law: modules that readers fuse (q, k and v; gate and up) always share their settings.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from llmopt.errors import QuantizationError
from llmopt.formats.quantized import QuantSpec

# Modules that are quantized, each with its spec; None where the scheme has no spec to choose.
ModuleSpecs = Mapping[str, QuantSpec | None]

_SYNTAX = (
    "Write PATTERN=bits:8,group:32 (group:row is one group per row), PATTERN=asym or PATTERN=skip."
)
_SKIPS = ("skip", "fp", "full")


@dataclass(frozen=True, slots=True)
class Override:
    """What to do with the modules whose name matches `pattern`, a shell pattern.

    Fields that are None leave the scheme's setting. `group_size` 0: one group per row.
    """

    pattern: str
    skip: bool = False
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None

    def apply(self, spec: QuantSpec) -> QuantSpec:
        """Return the spec with the override's settings."""
        if self.bits is not None:
            spec = replace(spec, bits=self.bits)
        if self.group_size is not None:
            spec = replace(spec, group_size=self.group_size or None)
        if self.symmetric is not None:
            spec = replace(spec, symmetric=self.symmetric)
        return spec


def parse_override(text: str) -> Override:
    """Read an override. Raises `QuantizationError`."""
    pattern, separator, settings = text.partition("=")
    if not pattern or not separator or not settings:
        raise QuantizationError(f"{text!r} is no override", _SYNTAX)
    if settings in _SKIPS:
        return Override(pattern, skip=True)
    override = Override(pattern)
    for setting in settings.split(","):
        override = _with_setting(override, setting.strip(), text)
    return override


def resolve_specs(
    families: Iterable[Sequence[str]], default: QuantSpec | None, overrides: Sequence[Override]
) -> dict[str, QuantSpec | None]:
    """Return the modules that are quantized, each with its spec.

    families: the modules of each layer that readers fuse, by name. The last override that matches
    a module decides. Raises `QuantizationError` for an override that matches nothing, that sets
    bits in a scheme without a spec, or that gives the members of a family different settings.
    """
    unused = {override.pattern for override in overrides}
    resolved: dict[str, QuantSpec | None] = {}
    for names in families:
        matching = {name: [o for o in overrides if fnmatchcase(name, o.pattern)] for name in names}
        unused -= {override.pattern for found in matching.values() for override in found}
        deciding = {name: found[-1] for name, found in matching.items() if found}
        kept = {
            name: _spec(name, default, deciding.get(name))
            for name in names
            if not (name in deciding and deciding[name].skip)
        }
        if kept and (len(kept) < len(names) or len(set(kept.values())) > 1):
            raise QuantizationError(
                f"{', '.join(names)} are one layer for readers, and got different settings",
                "Use a pattern that matches all of them.",
            )
        resolved.update(kept)
    if unused:
        raise QuantizationError(
            f"the override {min(unused)!r} matches no module",
            "Patterns match whole names, such as 'model.layers.0.mlp.down_proj' or '*.down_proj'.",
        )
    return resolved


def _spec(name: str, default: QuantSpec | None, override: Override | None) -> QuantSpec | None:
    if override is None:
        return default
    if default is None:
        raise QuantizationError(
            f"the scheme of {name} has no bits or groups to choose", "Only =skip is possible here."
        )
    return override.apply(default)


def _with_setting(override: Override, setting: str, text: str) -> Override:
    number = re.fullmatch(r"(bits|group):(\d+)", setting)
    if number and number[1] == "bits":
        return replace(override, bits=int(number[2]))
    if number and int(number[2]) > 0:
        return replace(override, group_size=int(number[2]))
    if setting == "group:row":
        return replace(override, group_size=0)
    if setting in ("asym", "sym"):
        return replace(override, symmetric=setting == "sym")
    raise QuantizationError(f"{setting!r} in the override {text!r} means nothing", _SYNTAX)
