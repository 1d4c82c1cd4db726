"""What is usable on this machine, and the command that would add what is not.

Knows nothing about models or results. The laws: a kernel counts as usable only after it gave the
right product here; an optional package is looked up, never imported; nothing is changed.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import llmopt
from llmopt.hardware.cache import cache_directory
from llmopt.hardware.device import DeviceFacts, device_facts
from llmopt_kernels.wna16.torch_cpu import pack_int4, pack_int8

State = Literal["ok", "missing", "off"]

_MODEL_BYTES = 600_000_000  # what fetching the default model takes
_DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis.

    state: "ok"; "missing" (needed for the main job); "off" (llmopt works without it).
    """

    name: str
    state: State
    detail: str
    command: str | None = None  # what would add or mend it


@dataclass(frozen=True, slots=True)
class _Optional:
    """A package that some part can use: what for, and how it is added."""

    package: str
    module: str
    purpose: str
    command: str


_OPTIONAL = (_Optional("lm_eval", "lm_eval", "task accuracy", 'pip install "llmopt[tasks]"'),)


def diagnose() -> list[Finding]:
    """Look at the machine, the packages, the kernels and the cache. Takes a second or two."""
    facts = device_facts()
    return [
        *_software(),
        *_machine(facts),
        _kernel("int4 kernel (CPU)", _int4_product_is_right),
        _kernel("int8 kernel (CPU)", _int8_product_is_right),
        _triton(facts),
        *(_optional(part) for part in _OPTIONAL),
        _compiler(),
        _cached_models(),
        _cache_room(),
    ]


def _software() -> list[Finding]:
    python = f"{platform.python_version()} ({sys.executable})"
    required = ("torch", "transformers", "safetensors", "gguf")
    return [
        Finding("llmopt", "ok", llmopt.__version__),
        Finding("python", "ok", python),
        *(_required(package) for package in required),
    ]


def _required(package: str) -> Finding:
    version = _version(package)
    if version is None:
        return Finding(package, "missing", "not installed", f"pip install {package}")
    return Finding(package, "ok", version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine(facts: DeviceFacts) -> list[Finding]:
    memory = f"{facts.memory_bytes / 1e9:.1f} GB, {facts.available_memory_bytes / 1e9:.1f} GB free"
    cpu = f"{facts.cpu}, {facts.cores} cores, {torch.get_num_threads()} threads in use"
    instructions = ", ".join(facts.instruction_sets)
    return [
        Finding("cpu", "ok", cpu),
        Finding("memory", "ok", memory),
        Finding("instruction sets", "ok" if instructions else "off", instructions or "unknown"),
        _gpu(facts),
    ]


def _gpu(facts: DeviceFacts) -> Finding:
    if facts.gpu is None:
        return Finding("gpu", "off", "no CUDA device that torch can use; everything runs on CPU")
    gpu = facts.gpu
    major, minor = gpu.compute_capability
    detail = f"{gpu.name}, {gpu.memory_bytes / 1e9:.1f} GB, compute {major}.{minor}"
    return Finding("gpu", "ok", f"{detail}, driver {gpu.driver or 'unknown'}")


def _kernel(name: str, is_right: Callable[[], bool]) -> Finding:
    try:
        right = is_right()
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        return Finding(
            name, "off", f"this torch cannot run it ({reason}); weights are dequantized at loading"
        )
    if not right:
        return Finding(
            name, "off", "it gives wrong products here; weights are dequantized at loading"
        )
    return Finding(name, "ok", "right product on a small matrix")


def _int4_product_is_right() -> bool:
    """Sixteen rows of the codes 0 to 15, against the product in float64."""
    codes = (torch.arange(16 * 32) % 16).reshape(16, 32).to(torch.uint8)
    weight = pack_int4(codes, torch.full((16, 1), 0.5), torch.zeros(16, 1))
    return _agrees(weight.matmul, (codes.double() - 8) * 0.5)


def _int8_product_is_right() -> bool:
    codes = (torch.arange(16 * 32) % 256).reshape(16, 32).to(torch.uint8)
    weight = pack_int8(codes, torch.full((16, 1), 0.5))
    return _agrees(weight.matmul, (codes.double() - 128) * 0.5)


def _agrees(matmul: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor) -> bool:
    """Whether x W^T is right within bfloat16. weight: float64 [O, K]."""
    x = torch.linspace(-1, 1, weight.shape[1], dtype=torch.float64).to(torch.bfloat16)[None]
    expected = x.double() @ weight.t()
    return torch.allclose(matmul(x).double(), expected, rtol=2e-2, atol=0.1)


def _triton(facts: DeviceFacts) -> Finding:
    if facts.gpu is None:
        return Finding("triton", "off", "its kernels need a CUDA device")
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", "missing", "not installed", "pip install triton")
    return Finding("triton", "ok", _version("triton") or "found")


def _optional(part: _Optional) -> Finding:
    if importlib.util.find_spec(part.module) is None:
        return Finding(part.package, "off", f"not installed ({part.purpose})", part.command)
    return Finding(part.package, "ok", f"{_version(part.package) or 'found'} ({part.purpose})")


def _compiler() -> Finding:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path is not None:
            return Finding("C++ compiler", "ok", path)
    return Finding("C++ compiler", "off", "none found; compiled kernels cannot be built")


def _cached_models() -> Finding:
    models = sorted((cache_directory() / "models").glob(f"*/{_DEFAULT_MODEL}/config.json"))
    if not models:
        return Finding(
            "default model",
            "off",
            "not in the cache; fetched when it is first used (93 MB)",
            f"llmopt generate {_DEFAULT_MODEL} -p Hello",
        )
    return Finding("default model", "ok", ", ".join(str(path.parent) for path in models))


def _cache_room() -> Finding:
    """Whether the cache, or the nearest directory above it that exists, can be written."""
    directory = cache_directory()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail, command = f"{directory}, {free / 1e9:.1f} GB free", "export LLMOPT_CACHE=DIRECTORY"
    if not _is_writable(existing):
        return Finding("cache", "missing", f"{detail}, not writable", command)
    if free < _MODEL_BYTES:
        return Finding("cache", "missing", f"{detail}, too little for the default model", command)
    return Finding("cache", "ok", detail)


def _is_writable(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)
