"""What commands print on standard output, and where they may write."""

import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from llmopt.errors import OutputError


def print_json(content: object) -> None:
    """One JSON document on standard output; dataclasses become objects, paths text."""
    print(json.dumps(content, indent=2, default=_plain))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def require_place(path: Path) -> None:
    """Raise OutputError unless a file can be written there, as far as that can be seen before."""
    if path.is_dir():
        raise OutputError(f"{path} is a directory", "Name a file in it.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written", "Choose another output path.")


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """A text file, or standard output for None. Raises OutputError if it cannot be written.

    What fails within the block leaves a file as it was.
    """
    if path is None:
        yield sys.stdout
        return
    text = io.StringIO()
    yield text
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path} cannot be written ({reason})", "Choose another output path."
        ) from error
