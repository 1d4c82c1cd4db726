"""The raw test split of WikiText-2 as a file, fetched once and kept.

Knows nothing about tokens or rows. The law: `wikitext-2` always names the same bytes, whoever put
the file there, so that every number measured on it was measured on the same text.
"""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from llmopt.errors import OutputError, UsageError
from llmopt.hardware.cache import cache_directory

SHA256: Final = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
NUM_BYTES: Final = 1_290_590
_REPOSITORY = "ggml-org/ci"  # the hub's copy of the authors' archive; llama.cpp's tools use it too
_ARCHIVE = "wikitext-2-raw-v1.zip"
_MEMBER = "wikitext-2-raw/wiki.test.raw"


def wikitext2_path() -> Path:
    """Where the file is kept, and where one that was fetched by hand is looked for."""
    return cache_directory() / "texts" / "wikitext-2-raw" / "wiki.test.raw"


def read_wikitext2() -> bytes:
    """The raw test split (Merity et al. 2016; CC BY-SA 3.0), fetched from the hub the first time.

    Its lines are the rows of the hub's `wikitext-2-raw-v1`. Raises UsageError (not to be fetched,
    or the file that is kept is another text) and OutputError (it cannot be kept).
    """
    path = wikitext2_path()
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", "Make it readable, or remove it."
        ) from error
    if content is None:
        content = _fetch(path)
        _check(content, f"{_REPOSITORY}/{_ARCHIVE}")
        _keep(path, content)
    else:
        _check(content, str(path))
    return content


def _fetch(path: Path) -> bytes:
    from huggingface_hub import hf_hub_download

    try:
        with tempfile.TemporaryDirectory() as directory:
            archive = hf_hub_download(
                _REPOSITORY, _ARCHIVE, repo_type="dataset", local_dir=directory
            )
            with zipfile.ZipFile(archive) as opened:
                return opened.read(_MEMBER)
    except Exception as error:  # the hub client lets errors of two HTTP libraries through
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"WikiText-2 cannot be fetched from the hub ({reason})",
            f"Connect to the network, or put wiki.test.raw of wikitext-2-raw-v1 at {path}.",
        ) from error


def _check(content: bytes, origin: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise UsageError(
            f"{origin} is not the raw test split of WikiText-2: {len(content)} bytes with sha256"
            f" {found[:8]}, not {NUM_BYTES} with {SHA256[:8]}",
            f"Put the original at {wikitext2_path()}, or measure a copy by giving its path.",
        )


def _keep(path: Path, content: bytes) -> None:
    """Write the file so that it is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(
            f"WikiText-2 cannot be kept at {path} ({error.strerror or error})",
            "Set LLMOPT_CACHE to a writable directory with free space.",
        ) from error
