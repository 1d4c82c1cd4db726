"""The JSON Schema of recipe files, for editors that complete and check YAML while it is written.

Knows nothing about what a recipe means. The law: it is derived from the dataclasses that
`llmopt.recipe.build` builds, so that the two allow the same keys and types; the rules of `check`
and `check_loads` go beyond it.
"""

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llmopt.recipe.schema import Recipe

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_TYPES: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    NoneType: "null",
}


def recipe_json_schema() -> dict[str, Any]:
    """Return the schema as JSON values."""
    definitions: dict[str, Any] = {}
    root = _object(Recipe, definitions)
    return {"$schema": DRAFT, "title": "llmopt recipe", **root, "$defs": definitions}


def _object(cls: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    required = [
        field.name
        for field in fields(cls)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    return {
        "type": "object",
        "description": _description(cls),
        "properties": {
            field.name: _described(hints[field.name], field.default, definitions)
            for field in fields(cls)
        },
        "required": required,
        "additionalProperties": False,
    }


def _described(hint: Any, default: object, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _schema(hint, definitions)
    if default is None or isinstance(default, str | bool | int | float):
        return {**schema, "default": default}
    return schema


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return {"anyOf": [_schema(member, definitions) for member in get_args(hint)]}
    if is_dataclass(hint):
        name = getattr(hint, "__name__", str(hint))
        if name not in definitions:
            definitions[name] = {}  # holds the place while its fields are read
            definitions[name] = _object(hint if isinstance(hint, type) else type(hint), definitions)
        return {"$ref": f"#/$defs/{name}"}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _schema(get_args(hint)[0], definitions)}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    return {"type": _TYPES[hint]}


def _description(cls: type[Any]) -> str:
    return " ".join((cls.__doc__ or "").split())
