"""JSON objects in files: written whole or not at all, read with every fault named.

Knows nothing about what the objects mean. The law: a file has all of its content or none, and an
operating-system error becomes one sentence with its remedy.
"""

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llmopt.errors import OutputError, ResultError


def write_new(path: Path, document: Mapping[str, object]) -> bool:
    """Write a file that does not exist yet; return False, and leave it alone, if it does.

    The name is taken first and the content put in its place at once, so that two writers cannot
    overwrite each other. Raises OutputError.
    """
    make_directory(path.parent)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    except OSError as error:
        raise output_error(path, error) from error
    try:
        write(path, document)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def write(path: Path, document: Mapping[str, object]) -> None:
    """Write or replace a file atomically; each top-level field on a line. Raises OutputError."""
    make_directory(path.parent)
    lines = (f"{json.dumps(key)}: {_dumps(value)}" for key, value in document.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def read(path: Path) -> dict[str, object]:
    """Return the JSON object in a file. Raises ResultError: missing, unreadable, cut off, other."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ResultError(f"There is no file or directory {path}", "Check the path.") from None
    except OSError as error:
        raise ResultError(
            f"{path} cannot be read ({error.strerror})", "Check its permissions."
        ) from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ResultError(
            f"{path} is not a whole JSON file ({reason})", "It may have been cut off: remove it."
        ) from None
    if not isinstance(value, dict):
        raise ResultError(f"{path} is not an llmopt result file", "Leave it out.")
    return value


def make_directory(path: Path) -> None:
    """Make a directory and its parents if they are missing. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the sentence and remedy for an operating-system error while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"No space left to write {path}", "Free some space and run it again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"Not allowed to write {path}", "Choose a directory that you may write.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OutputError(
            f"{path} cannot be made: a file is in the way", "Choose another directory."
        )
    return OutputError(f"{path} cannot be written ({error.strerror})", "Choose another directory.")


def _dumps(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
