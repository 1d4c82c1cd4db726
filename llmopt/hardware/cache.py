"""Where llmopt keeps what it can make again: a model, measured ceilings, compiled kernels.

Knows nothing about the contents. The law: only this file decides the place.
"""

import os
from pathlib import Path

from llmopt.errors import OutputError


def cache_directory() -> Path:
    """$LLMOPT_CACHE, or $XDG_CACHE_HOME/llmopt, or ~/.cache/llmopt. Not created here.

    Raises OutputError where that is in a home directory that nobody knows.
    """
    if own := os.environ.get("LLMOPT_CACHE"):
        return _expanded(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return _expanded(shared) / "llmopt"
    return _expanded("~/.cache/llmopt")


def kernels_directory() -> Path:
    """$LLMOPT_KERNELS, or a folder of the cache: where the compiled CPU kernels are. Raises as
    `cache_directory`.
    """
    if own := os.environ.get("LLMOPT_KERNELS"):
        return _expanded(own)
    return cache_directory() / "kernels"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OutputError(
            f"the home directory that {path} is in is unknown",
            "Set HOME, or set LLMOPT_CACHE to an absolute path.",
        ) from error
