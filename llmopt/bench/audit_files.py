"""JSON and JSON-lines files of other tools, as a list of objects.

Knows nothing about what the objects mean. The law: what is not JSON is one sentence with a remedy.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmopt.errors import ResultError

Document = dict[str, Any]


def read_documents(path: Path) -> list[Document]:
    """The objects of a file: one, a list of them, or one a line. Raises ResultError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read ({error})", "Check the path.") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _lines(path, text)
    objects = value if isinstance(value, list) else [value]
    if not objects or not all(isinstance(item, dict) for item in objects):
        raise ResultError(f"{path} holds no JSON objects", "Give a benchmark's JSON file.")
    return objects


@contextmanager
def reading(path: Path, whose: str) -> Iterator[None]:
    """What is missing, or is no number where the format has one, becomes a ResultError.

    whose: whose file it looks like, such as "GuideLLM"
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ResultError(
            f"{path} looks like a file of {whose}, but is not whole "
            f"({type(error).__name__}: {error})",
            "Its format may have changed, or the file was cut off.",
        ) from error


def _lines(path: Path, text: str) -> list[Any]:
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ResultError(
            f"{path} is not a whole JSON file ({error})", "It may have been cut off."
        ) from None
