"""The text that quality is measured on, read whole.

Knows nothing about tokens or windows. The law it keeps: the hash is that of the bytes that were
read, so that a result says which text it was measured on whatever the file was called.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmopt.data import read_text
from llmopt.data.wikitext_file import read_wikitext2
from llmopt.errors import UsageError
from llmopt.recipe.schema import BUNDLED_TEXT

WIKITEXT2: Final = "wikitext-2"


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """A text, what it is called, and the hash of its bytes."""

    name: str
    content: str
    sha256: str


def read_evaluation_text(source: str) -> EvaluationText:
    """Read `bundled`, `wikitext-2` (the raw test split, fetched once) or a UTF-8 file.

    A byte order mark is no part of the text. Raises UsageError when the text cannot be read or
    decoded, OutputError when a fetched one cannot be kept.
    """
    name, content = _read(source)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the text {name!r} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}",
            "Convert it to UTF-8, or give another text.",
        ) from error
    return EvaluationText(name, text, hashlib.sha256(content).hexdigest())


def _read(source: str) -> tuple[str, bytes]:
    if source == BUNDLED_TEXT:
        return source, read_text("evaluation").encode()
    if source == WIKITEXT2:
        return source, read_wikitext2()
    path = Path(source)
    try:
        return path.name, path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the text {source!r} cannot be read: {reason}",
            f"Give a readable UTF-8 text file, {BUNDLED_TEXT} for the text that llmopt brings, or "
            f"{WIKITEXT2}.",
        ) from error
