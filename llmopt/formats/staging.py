"""A directory that appears under its final name only when it is complete.

Knows nothing of what is in it.
"""

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llmopt.errors import OutputError


@contextmanager
def staged_directory(path: Path, expected_bytes: int = 0) -> Iterator[Path]:
    """Yield a hidden sibling of `path`, renamed to it at the end and removed on any error.

    Raises OutputError as `check_writable`, and when the renaming fails.
    """
    check_writable(path, expected_bytes)
    with output_errors(path):
        staging = Path(
            tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        )
        staging.chmod(0o755)
    try:
        yield staging
        with output_errors(path):
            sync(staging)
            staging.rename(path)
            sync(path.parent)
    finally:
        if staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def remove_stale(path: Path) -> None:
    """Remove what killed processes left beside `path`; only for whoever has it to himself.

    What `tempfile` puts between the name and the suffix has no dot: more of them are of an output
    whose name is longer.
    """
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if "." not in stale.name.removeprefix(f".{path.name}.").removesuffix(".partial"):
            shutil.rmtree(stale, ignore_errors=True)


def check_writable(path: Path, expected_bytes: int) -> None:
    """Refuse early: an existing target, a parent that cannot be written, or too little free disk
    space (OutputError).
    """
    if path.exists():
        raise OutputError(f"{path} exists already", "Choose another directory, or remove it first.")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path.parent} is not writable", "Choose another output directory.")
    if free < expected_bytes:
        raise OutputError(
            f"{path} needs {expected_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            "Free some space, or choose a directory on another disk.",
        )


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into one clear OutputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _output_error(path, error) from error


def sync(path: Path) -> None:
    """Force a file's or directory's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(path: Path, error: Exception) -> OutputError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in str(error):
        return OutputError(
            f"the disk filled up while {path} was written",
            "Free some space, or choose a directory on another disk.",
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutputError(f"{path} cannot be written ({reason})", "Choose another output path.")
