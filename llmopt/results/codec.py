"""Any of the schema's dataclasses to JSON values and back, checked against its type hints.

Knows nothing about files, nor what the fields mean. The law: `from_json(type(x), to_json(x)) == x`,
and a value that does not fit its field, an unknown field or a missing one is a ResultError that
names the source and the field. Floats that JSON cannot write are the strings "inf", "-inf", "nan".
"""

import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from llmopt.errors import ResultError

T = TypeVar("T")

_PLAIN = frozenset({str, bool, int, float})
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_json(value: object) -> Any:
    """Return the JSON value of a dataclass of the schema, or of a part of one."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    assert value is None or isinstance(value, str | bool | int | float), f"not JSON: {value!r}"
    return value


def from_json(cls: type[T], value: object, source: str) -> T:
    """Return the dataclass `cls` from JSON values. Raises ResultError naming `source` and field."""
    return cast(T, _dataclass(cls, value, source, ""))


def _dataclass(cls: Any, value: object, source: str, where: str) -> object:
    if not isinstance(value, dict):
        raise _wrong(source, where, "an object", value)
    hints, needed = _fields(cls)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise _error(source, f"unknown field {prefix + str(key)!r}")
    for name in needed:
        if name not in value:
            raise _error(source, f"the field {prefix + name!r} is missing")
    return cls(
        **{key: _value(hints[key], item, source, prefix + key) for key, item in value.items()}
    )


@cache
def _fields(cls: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The type of each field, and the names of those without a default."""
    hints = get_type_hints(cls)
    found = fields(cls)
    needed = tuple(field.name for field in found if field.default is MISSING)
    return {field.name: hints[field.name] for field in found}, needed


def _value(hint: Any, value: object, source: str, where: str) -> object:
    if hint is object or (type(value) is hint and hint in _PLAIN):
        return value
    if hint is float:
        return _float(value, source, where)
    if isinstance(hint, UnionType):
        (inner,) = (member for member in get_args(hint) if member is not NoneType)
        return None if value is None else _value(inner, value, source, where)
    if is_dataclass(hint):
        return _dataclass(cast(type[Any], hint), value, source, where)
    origin = get_origin(hint)
    if origin is tuple:
        return _tuple(get_args(hint), value, source, where)
    if origin is dict:
        return _dict(get_args(hint)[1], value, source, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise _wrong(source, where, f"one of {', '.join(map(repr, get_args(hint)))}", value)
    elif type(value) is not hint:
        raise _wrong(source, where, hint.__name__, value)
    return value


def _float(value: object, source: str, where: str) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(source, where, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise _wrong(source, where, "a number", value) from None


def _tuple(hints: tuple[Any, ...], value: object, source: str, where: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise _wrong(source, where, "a list", value)
    if hints[-1] is Ellipsis:
        if hints[0] in _PLAIN and all(type(item) is hints[0] for item in value):
            return tuple(value)  # most of a file: the times of tokens
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise _wrong(source, where, f"a list of {len(hints)}", value)
    return tuple(
        _value(hint, item, source, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _dict(hint: Any, value: object, source: str, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(source, where, "an object", value)
    return {key: _value(hint, item, source, f"{where}[{key!r}]") for key, item in value.items()}


def _wrong(source: str, where: str, expected: str, value: object) -> ResultError:
    field = f"the field {where!r}" if where else "the content"
    return _error(source, f"{field} must be {expected}, not {_shorten(repr(value))}")


def _error(source: str, what: str) -> ResultError:
    return ResultError(f"{source}: {what}", "Measure again, or leave this file out.")


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
