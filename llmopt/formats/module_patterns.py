"""Patterns of module names, as quantization configs contain them: matched, and written.

A pattern is a name, or "re:" and a regular expression that the name must start with a match of:
what GPTQModel, compressed-tensors, vLLM and SGLang do (`re.match`). Knows nothing of what a pattern
stands for. The law: configs and names are untrusted, so a pattern that is no regular expression, or
one that could take for ever on a name, is a CheckpointError before anything is matched.
"""

import math
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
MAX_STEPS = 10**8  # of a match: about a second
NAME_LETTERS = 64  # that any module may have; names of real ones are shorter


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern stands for a module. Raises CheckpointError for an unusable pattern, and
    for one that could take for ever on a name of this length.
    """
    if not pattern.startswith(REGEX):
        return pattern == module
    letters = max(len(module), NAME_LETTERS)
    return _compile(pattern.removeprefix(REGEX), letters).match(module) is not None


def check_pattern(pattern: object) -> str:
    """The pattern, if it is a usable one; CheckpointError otherwise."""
    if not isinstance(pattern, str):
        raise CheckpointError(
            f"quantization_config names modules by {pattern!r}, which is no text",
            "Fetch the checkpoint again.",
        )
    if pattern.startswith(REGEX):
        _compile(pattern.removeprefix(REGEX), NAME_LETTERS)
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
def _compile(expression: str, letters: int) -> re.Pattern[str]:
    """The pattern, for names of so many letters."""
    if len(expression) > MAX_LENGTH or _can_explode(expression, letters):
        raise CheckpointError(
            f"quantization_config has a pattern that could take for ever on a name of {letters} "
            f"letters: {expression[:80]}",
            "Write it without repeated groups and with fewer repeats and alternatives.",
        )
    try:
        return re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"quantization_config has a pattern that is no regular expression: "
            f"{expression[:80]} ({error})",
            "Correct it in config.json, or fetch the checkpoint again.",
        ) from error


def _can_explode(expression: str, letters: int) -> bool:
    """Whether matching a name of so many letters could take more than MAX_STEPS.

    Decided on the safe side: a group that is repeated counts, whatever is in it, and so does what
    may hide one (comments, spaces that mean nothing). Otherwise each alternative of the whole has
    at most as many ways to try as ways to share the letters out among the unbounded repeats, times
    those to take or leave what is optional, times those to choose within its groups.
    """
    bare = re.sub(r"\\.", "x", expression)
    if re.search(r"\(\?(?:#|\w*x)", bare) is not None:
        return True
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    if re.search(r"\)(?:[*+]|\{)", bare) is not None:
        return True
    return sum(_num_ways(part, letters) for part in _alternatives(bare)) > MAX_STEPS


def _num_ways(bare: str, letters: int) -> int:
    num_repeats = len(re.findall(r"[*+]|\{\d*,\d*\}", bare))
    num_optional = len(re.findall(r"(?<![(*+?}])\?", bare))  # the others name or soften something
    return math.comb(letters + num_repeats, num_repeats) * _num_choices(bare) << num_optional


def _alternatives(bare: str) -> list[str]:
    """What stands between the bars that are in no group."""
    parts, depth = [""], 0
    for letter in bare:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _num_choices(bare: str) -> int:
    """The alternatives of each group, multiplied."""
    choices, alternatives = 1, [1]
    for letter in bare:
        if letter == "(":
            alternatives.append(1)
        elif letter == "|":
            alternatives[-1] += 1
        elif letter == ")" and len(alternatives) > 1:
            choices *= alternatives.pop()
    return choices * math.prod(alternatives)
