"""Patterns of module names, as quantization configs contain them: matched, and written.

A pattern is a name, or "re:" and a regular expression that the name must start with a match of:
what GPTQModel, compressed-tensors, vLLM and SGLang do (`re.match`). Knows nothing of what a pattern
stands for. The law: configs are untrusted, so a pattern that is no regular expression, or one that
could take for ever, is a CheckpointError before anything is matched.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from llmopt.errors import CheckpointError

# Layers that engines compute as one, which therefore share their settings: vLLM looks a rule up
# under the name of the fused layer.
FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
REGEX = "re:"
MAX_LENGTH = 10_000
MAX_REPEATS = 6  # unbounded ones: matching a name of n letters takes up to n^6 steps


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern stands for a module. Raises CheckpointError for an unusable pattern."""
    if not pattern.startswith(REGEX):
        return pattern == module
    return _compile(pattern.removeprefix(REGEX)).match(module) is not None


def check_pattern(pattern: object) -> str:
    """The pattern, if it is a usable one; CheckpointError otherwise."""
    if not isinstance(pattern, str):
        raise CheckpointError(
            f"quantization_config names modules by {pattern!r}, which is no text",
            "Fetch the checkpoint again.",
        )
    if pattern.startswith(REGEX):
        _compile(pattern.removeprefix(REGEX))
    return pattern


def cover(modules: Collection[str]) -> list[str]:
    """Regular expressions that match these modules and no others, few and short: layers that
    differ in their block's number, or in their own name within a parent, share one.

    Where all parts of a fused layer are there, its name matches, too.
    """
    numbers: dict[tuple[str, str, str], set[int]] = {}  # (before, between, name) -> blocks
    plain = []
    for module in modules:
        found = re.fullmatch(r"(.+?)\.(\d+)\.((?:.+\.)?)([^.]+)", module)
        if found is None:
            plain.append(f"{re.escape(module)}$")
            continue
        before, number, between, name = found.groups()
        numbers.setdefault((before, between, name), set()).add(int(number))
    names: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (before, between, name), blocks in numbers.items():
        names.setdefault((before, between, tuple(sorted(blocks))), []).append(name)
    covering = [
        rf"{re.escape(before)}\.{_any_of(map(str, blocks))}\.{re.escape(between)}"
        f"{_any_of(_with_fused(found_names))}$"
        for (before, between, blocks), found_names in names.items()
    ]
    return [*covering, *plain]


def _with_fused(names: list[str]) -> list[str]:
    fused = [name for name, parts in FUSED.items() if set(parts) <= set(names)]
    return [re.escape(name) for name in [*names, *fused]]


def _any_of(alternatives: Iterable[str]) -> str:
    listed = list(alternatives)
    return listed[0] if len(listed) == 1 else f"(?:{'|'.join(listed)})"


@lru_cache(maxsize=1024)
def _compile(expression: str) -> re.Pattern[str]:
    if len(expression) > MAX_LENGTH or _can_explode(expression):
        raise CheckpointError(
            f"quantization_config has a pattern that could take for ever: {expression[:80]}",
            "Write it without repeated groups and with fewer repeats.",
        )
    try:
        return re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"quantization_config has a pattern that is no regular expression: "
            f"{expression[:80]} ({error})",
            "Correct it in config.json, or fetch the checkpoint again.",
        ) from error


def _can_explode(expression: str) -> bool:
    """Whether matching may take exponentially many steps, or a high power of the length.

    Decided on the safe side: a group that is repeated counts, whatever is in it.
    """
    bare = re.sub(r"\\.", "x", expression)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    unbounded = re.findall(r"[*+]|\{\d*,\d*\}", bare)
    return re.search(r"\)(?:[*+]|\{)", bare) is not None or len(unbounded) > MAX_REPEATS
