"""Where llmopt keeps what it can make again: a model, measured ceilings, compiled kernels.

Knows nothing about the contents. The law: only this file decides the place.
"""

import os
from pathlib import Path


def cache_directory() -> Path:
    """$LLMOPT_CACHE, or $XDG_CACHE_HOME/llmopt, or ~/.cache/llmopt. Not created here."""
    if own := os.environ.get("LLMOPT_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "llmopt"
    return Path.home() / ".cache" / "llmopt"


def kernels_directory() -> Path:
    """$LLMOPT_KERNELS, or a folder of the cache: where the compiled CPU kernels are."""
    if own := os.environ.get("LLMOPT_KERNELS"):
        return Path(own).expanduser()
    return cache_directory() / "kernels"
