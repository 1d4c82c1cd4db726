"""What this machine is, and which software runs on it.

Knows nothing about speed (`ceilings`) or about what is usable (`doctor`). The law: facts are read,
never guessed; what cannot be read is None or empty. The name of the host is never read.
"""

import importlib.metadata
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import llmopt
from llmopt.hardware.processors import usable_processors

_CPUINFO = Path("/proc/cpuinfo")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# the flags of the kernel's cpuinfo that decide which kernels can run: x86, then ARM
_INSTRUCTION_SETS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One accelerator."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]
    driver: str | None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The processor, its memory, and the accelerator if there is one."""

    cpu: str
    cores: int  # physical
    threads: int  # logical processors that this process may use
    memory_bytes: int
    available_memory_bytes: int
    instruction_sets: tuple[str, ...]
    gpu: GpuFacts | None


@dataclass(frozen=True, slots=True)
class EnvironmentFacts:
    """What a result file says about where it was made (fields as in its schema)."""

    device: str
    cores: int
    memory_bytes: int
    os: str
    python: str
    torch: str
    transformers: str
    llmopt: str
    git_sha: str | None
    git_dirty: bool | None
    num_threads: int
    instruction_sets: tuple[str, ...]


def device_facts(device: str = "cuda") -> DeviceFacts:
    """Look at this machine. The accelerator is that of `device` where it is "cuda:N"; by default,
    and for "cpu", it is the first.
    """
    memory, cpuinfo, threads = psutil.virtual_memory(), _read_cpuinfo(), len(usable_processors())
    return DeviceFacts(
        cpu=_cpu_name(cpuinfo),
        cores=min(psutil.cpu_count(logical=False) or threads, threads),
        threads=threads,
        memory_bytes=memory.total,
        available_memory_bytes=memory.available,
        instruction_sets=_instruction_sets(cpuinfo),
        gpu=_gpu_facts(device if device.startswith("cuda") else "cuda"),
    )


def environment_facts(device: str) -> EnvironmentFacts:
    """What results measured on `device` ("cpu", "cuda" or "cuda:N") must say about it.

    For the latter the name and the memory are the accelerator's. An assert holds that there is one.
    """
    facts = device_facts(device)
    name, memory_bytes = facts.cpu, facts.memory_bytes
    if torch.device(device).type == "cuda":
        assert facts.gpu is not None, "results on cuda come from a machine with a CUDA device"
        name, memory_bytes = facts.gpu.name, facts.gpu.memory_bytes
    sha, dirty = _source_revision(Path(llmopt.__file__).parent.parent)
    return EnvironmentFacts(
        device=name,
        cores=facts.cores,
        memory_bytes=memory_bytes,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=importlib.metadata.version("transformers"),
        llmopt=llmopt.__version__,
        git_sha=sha,
        git_dirty=dirty,
        num_threads=torch.get_num_threads(),
        instruction_sets=facts.instruction_sets,
    )


def _read_cpuinfo() -> dict[str, str]:
    """The kernel's description of the first processor; empty where there is none."""
    if not _CPUINFO.exists():
        return {}
    first = _CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_name(cpuinfo: dict[str, str]) -> str:
    return cpuinfo.get("model name") or platform.processor() or platform.machine()


def _instruction_sets(cpuinfo: dict[str, str]) -> tuple[str, ...]:
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return tuple(name for name in _INSTRUCTION_SETS if name in flags)


def _gpu_facts(device: str) -> GpuFacts | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(device)
    return GpuFacts(
        name=properties.name,
        memory_bytes=properties.total_memory,
        compute_capability=(properties.major, properties.minor),
        driver=_driver_version(),
    )


def _driver_version() -> str | None:
    if not _NVIDIA_DRIVER.exists():
        return None
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _NVIDIA_DRIVER.read_text(encoding="utf-8"))
    return match[1] if match else None


def _source_revision(root: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that llmopt runs from, and whether files differ from it.

    Both None when `root` is not the top of a git checkout with a commit: a copy installed below
    somebody else's checkout must not take over its commit.
    """
    if _git(root, "rev-parse", "--show-toplevel") != str(root.resolve()):
        return None, None
    sha = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain")
    return (sha, None) if changes is None else (sha, bool(changes))


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
