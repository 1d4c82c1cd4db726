"""Where the form of a checkpoint is kept that a library makes for itself.

Knows nothing of what is in it: the worker converts. The law: another library, checkpoint, state of
the same one, or other arguments of the conversion are another directory.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from llmopt.hardware.cache import cache_directory


def conversion_directory(name: str, checkpoint: Path, settings: Mapping[str, object]) -> Path:
    """The directory for a checkpoint's conversion by the backend `name`.

    Its parent is made; it is not there itself until the worker has converted. Raises OSError.
    """
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    made_of = json.dumps([str(checkpoint.resolve()), state, settings.get("export_args")])
    directory = cache_directory() / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory / hashlib.sha256(made_of.encode()).hexdigest()[:16]
