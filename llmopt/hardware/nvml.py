"""A GPU that torch calls "cuda" or "cuda:N", as NVIDIA's management library knows it.

Knows nothing about what is read from it. The law: the device is found by its identity, as NVML
neither heeds CUDA_VISIBLE_DEVICES nor counts in CUDA's order; what is not installed or not there is
None.
"""

import importlib
from typing import Any

import torch


class Gpu:
    """An open handle. `nvml` is the library's Python binding, `pynvml`."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml = nvml
        self.handle = handle


def open_gpu(device: str) -> Gpu | None:
    """The GPU of a device; None without one, or without nvidia-ml-py."""
    uuid = gpu_uuid(device)
    if uuid is None:
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
    except nvml.NVMLError:
        return None


def gpu_uuid(device: str) -> str | None:
    """The identity of torch's "cuda" (its first) or "cuda:N", as "GPU-..."; None without one."""
    if not torch.cuda.is_available():
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
