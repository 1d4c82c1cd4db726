"""What plain answers of servers hold: model lists, versions, token counts, health.

Pure functions of a body; each raises ValueError, LookupError or TypeError where it holds no answer.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from llmopt.backends.profiles.profile import Question


def is_ok(status: int, _body: str) -> bool:
    """Ready as soon as the status is 200."""
    return status == 200


def field_of(*path: str | int) -> Callable[[str], Any]:
    """A reader of one field of a JSON body."""
    return partial(_field, path)


def text_at(*path: str | int) -> Callable[[str], str]:
    """A reader of one field of a JSON body, which is a string that is not empty."""
    return partial(_text, path)


def count_at(*path: str | int) -> Callable[[str], int]:
    """A reader of one field of a JSON body, which is a number, or a list whose length is meant."""
    return partial(_count, path)


def model_ids(body: str) -> tuple[str, ...]:
    """Names of OpenAI's list of models."""
    return tuple(str(model["id"]) for model in json.loads(body)["data"])


def openai_models(root: str = "/v1") -> Question[tuple[str, ...]]:
    """The models, as OpenAI's interface lists them."""
    return Question(f"{root}/models", model_ids)


def listed_length(model: str) -> Question[int]:
    """`max_model_len` of the model's entry in the list, as vLLM and SGLang write it."""
    return Question("/v1/models", partial(_listed_length, model))


def _field(path: tuple[str | int, ...], body: str) -> Any:
    found = json.loads(body)
    for name in path:
        found = found[name]
    return found


def _text(path: tuple[str | int, ...], body: str) -> str:
    found = _field(path, body)
    if not isinstance(found, str) or not found:
        raise ValueError(f"{found!r} is not a text")
    return found


def _count(path: tuple[str | int, ...], body: str) -> int:
    found = _field(path, body)
    if isinstance(found, list):
        return len(found)
    if not isinstance(found, int):
        raise TypeError(f"{found!r} is not a number")
    return found


def _listed_length(model: str, body: str) -> int:
    lengths = {entry["id"]: entry["max_model_len"] for entry in json.loads(body)["data"]}
    return int(lengths[model])
