"""A frozen dataclass from a YAML node, checked field by field against its type hints.

Knows nothing about what a recipe means. The law: an unknown key, a missing key, a repeated key or
a value of another type is a RecipeError naming file:line, what was found and what is allowed;
nothing is converted silently (1 is not 1.0's int, "yes" is not true).
Understands str, bool, int, float (which whole numbers fit), Literal, `X | None`,
`dataclass | scalar`, `tuple[X, ...]` and dataclasses of these.
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import SafeConstructor

from llmopt.errors import RecipeError

T = TypeVar("T")

_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def build(cls: type[T], node: yaml.Node, file: str) -> T:
    """Return the dataclass `cls` that the mapping `node` describes. Raises RecipeError."""
    return cast(T, _dataclass(cls, node, file, "the recipe"))


def line_of(node: yaml.Node, path: Sequence[str | int]) -> int:
    """Return the line (from 1) of the value at `path`, or of the deepest part that is written."""
    for part in path:
        child = _child(node, part)
        if child is None:
            break
        node = child
    return int(node.start_mark.line) + 1


def _child(node: yaml.Node, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
        return cast(yaml.Node, node.value[part])
    return None


def _value(hint: Any, node: yaml.Node, file: str, where: str) -> object:
    """Return the value of `node` as `hint` says; `where` names it in errors."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return _union(get_args(hint), node, file, where)
    if is_dataclass(hint):
        return _dataclass(cast(type[Any], hint), node, file, where)
    if get_origin(hint) is tuple:
        return _tuple(get_args(hint)[0], node, file, where)
    value = _scalar(node, file, where) if isinstance(node, yaml.ScalarNode) else None
    if hint is float and type(value) is int and abs(value) <= sys.maxsize:
        value = float(value)
    if get_origin(hint) is Literal:
        _require_choice(value, get_args(hint), node, file, where)
    elif type(value) is not hint:
        raise _wrong_type(_KINDS[hint], node, file, where)
    return value


def _union(hints: tuple[Any, ...], node: yaml.Node, file: str, where: str) -> object:
    """Return None for a null; a mapping as the dataclass among the members of the union, and
    everything else as the other member.
    """
    if isinstance(node, yaml.ScalarNode) and _scalar(node, file, where) is None:
        return None
    members = [member for member in hints if member is not NoneType]
    fitting = [m for m in members if is_dataclass(m) == isinstance(node, yaml.MappingNode)]
    return _value((fitting or members)[0], node, file, where)


def _dataclass(cls: type[Any], node: yaml.Node, file: str, where: str) -> object:
    known = {field.name: field for field in fields(cls)}
    if not isinstance(node, yaml.MappingNode):
        raise _wrong_type(f"a mapping with the keys {', '.join(known)}", node, file, where)
    hints = get_type_hints(cls)
    values: dict[str, object] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else _found(key_node)
        if key not in known:
            raise _unknown_key(key, tuple(known), key_node, file, where)
        if key in values:
            raise RecipeError(
                f"{_at(file, key_node)}: the key {key!r} stands twice in {where}", "Remove one."
            )
        values[key] = _value(hints[key], value_node, file, f"{key!r}")
    missing = [name for name in known if name not in values and _is_required(known[name])]
    if missing:
        raise RecipeError(
            f"{_at(file, node)}: {where} lacks {', '.join(map(repr, missing))}",
            f"It needs {', '.join(name for name in known if _is_required(known[name]))}.",
        )
    return cls(**values)


def _tuple(item: Any, node: yaml.Node, file: str, where: str) -> tuple[object, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong_type("a list", node, file, where)
    return tuple(
        _value(item, child, file, f"item {index} of {where}")
        for index, child in enumerate(node.value, start=1)
    )


def _scalar(node: yaml.ScalarNode, file: str, where: str) -> object:
    try:
        return SafeConstructor().construct_object(node)
    except (ValueError, yaml.YAMLError):
        raise RecipeError(
            f"{_at(file, node)}: {where} has the value {node.value[:40]!r}, which YAML cannot read",
            "Put it in quotes if it is meant as text.",
        ) from None


def _require_choice(
    value: object, choices: tuple[object, ...], node: yaml.Node, file: str, where: str
) -> None:
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    raise RecipeError(
        f"{_at(file, node)}: {where} is {_found(node)}",
        f"Allowed: {', '.join(map(str, choices))}.{_suggestion(str(value), choices)}",
    )


def _unknown_key(
    key: str, known: tuple[str, ...], node: yaml.Node, file: str, where: str
) -> RecipeError:
    return RecipeError(
        f"{_at(file, node)}: unknown key {key!r} in {where}",
        f"Allowed: {', '.join(known)}.{_suggestion(key, known)}",
    )


def _wrong_type(expected: str, node: yaml.Node, file: str, where: str) -> RecipeError:
    return RecipeError(f"{_at(file, node)}: {where} is {_found(node)}", f"It must be {expected}.")


def _suggestion(found: str, choices: Sequence[object]) -> str:
    close = difflib.get_close_matches(found, [str(choice) for choice in choices], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return repr(node.value[:40]) if node.value else "empty"


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _at(file: str, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"
