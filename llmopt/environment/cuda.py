"""Whether this machine has an NVIDIA driver, without torch.

Knows nothing of what a GPU can do. The law: nothing is started and nothing is loaded.
"""

import shutil
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/version")


def has_nvidia_driver() -> bool:
    """Whether software that needs CUDA may find a device here."""
    return _DRIVER.exists() or shutil.which("nvidia-smi") is not None
