"""What this machine can do at best: memory bandwidth and matrix products, measured.

Knows nothing about models. The laws: plain torch operations with all of torch's threads, on arrays
far larger than any cache; the kinds of measurement take turns, and a rate is the best of its
rounds, so that another process that runs for a while does not lower a ceiling. For the same reason
a rate never falls below what the same machine, torch release, number of threads and device were
seen to do before, which is kept in the cache.

Method: copy as in STREAM (McCalpin 1995; best time; bytes read + bytes written, write-allocate
traffic not counted); read as a sum; square matrix products, 2 n^3 operations.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from llmopt.hardware.cache import cache_directory
from llmopt.hardware.device import device_facts

METHOD_VERSION = 1  # raise it when other numbers would come out on the same machine
_DTYPES = (torch.float32, torch.bfloat16)
_MAX_ROUNDS = 9
_MIN_ROUNDS = 3
_BUDGET_S = 4.0  # for all rounds; the warm-up comes on top


@dataclass(frozen=True, slots=True)
class MeasuredCeilings:
    """Measured rates (fields as in the schema of result files)."""

    gemm_flops: dict[str, float]  # FLOP/s of a large matrix product, per dtype
    copy_bytes_per_s: float
    read_bytes_per_s: float
    measured_at: str  # ISO 8601, UTC
    num_threads: int
    device: str


@dataclass(frozen=True, slots=True)
class _Sizes:
    array_bytes: int
    matrix: int


_SIZES = {"cpu": _Sizes(256 << 20, 1536), "cuda": _Sizes(2 << 30, 8192)}


@dataclass(frozen=True, slots=True)
class _Workload:
    """One operation, and the work that one call does (bytes or operations)."""

    name: str
    work: float
    call: Callable[[], object]


def measure_ceilings(device: str = "cpu") -> MeasuredCeilings:
    """The ceilings of `device` ("cpu", "cuda" or "cuda:N"), measured now, which takes some seconds.

    Rates that were higher in an earlier measurement on this machine are taken from there. A
    cache that cannot be read or written only loses that memory.
    """
    path = _cache_path(device)
    rates = _measure(_workloads(torch.device(device)), torch.device(device))
    measured = MeasuredCeilings(
        gemm_flops={_dtype_name(dtype): rates[_dtype_name(dtype)] for dtype in _DTYPES},
        copy_bytes_per_s=rates["copy"],
        read_bytes_per_s=rates["read"],
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_threads=torch.get_num_threads(),
        device=device,
    )
    ceilings = _raise_to(measured, _read(path))
    _write(path, ceilings)
    return ceilings


def _raise_to(measured: MeasuredCeilings, earlier: MeasuredCeilings | None) -> MeasuredCeilings:
    """Each rate the higher of the two measurements."""
    if earlier is None:
        return measured
    return replace(
        measured,
        gemm_flops={
            dtype: max(rate, earlier.gemm_flops.get(dtype, 0.0))
            for dtype, rate in measured.gemm_flops.items()
        },
        copy_bytes_per_s=max(measured.copy_bytes_per_s, earlier.copy_bytes_per_s),
        read_bytes_per_s=max(measured.read_bytes_per_s, earlier.read_bytes_per_s),
    )


def _workloads(device: torch.device) -> list[_Workload]:
    sizes = _SIZES[device.type]
    source = torch.ones(sizes.array_bytes // 4, device=device)
    target = torch.empty_like(source)
    workloads = [
        _Workload("read", sizes.array_bytes, source.sum),
        _Workload("copy", 2 * sizes.array_bytes, lambda: target.copy_(source)),
    ]
    for dtype in _DTYPES:
        a = torch.rand(sizes.matrix, sizes.matrix, device=device).to(dtype)
        b, out = a.t().contiguous(), torch.empty_like(a)
        product = _matrix_product(a, b, out)
        workloads.append(_Workload(_dtype_name(dtype), 2.0 * sizes.matrix**3, product))
    return workloads


def _matrix_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.mm(a, b, out=out)


def _measure(workloads: list[_Workload], device: torch.device) -> dict[str, float]:
    """Work per second of each workload: the best of interleaved rounds."""
    for workload in workloads:
        _time(workload, device)  # warm-up: pages, code paths, clocks
    seconds: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    end = time.perf_counter() + _BUDGET_S
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.perf_counter() > end:
            break
        for workload in workloads:
            seconds[workload.name].append(_time(workload, device))
    return {w.name: w.work / min(seconds[w.name]) for w in workloads}


def _time(workload: _Workload, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    workload.call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cache_path(device: str) -> Path:
    """One file for everything that the numbers depend on."""
    facts = device_facts(device)
    key = [
        METHOD_VERSION,
        facts.cpu,
        facts.cores,
        facts.memory_bytes,
        facts.instruction_sets,
        facts.gpu.name if facts.gpu else None,
        torch.__version__,
        torch.get_num_threads(),
        device,
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_directory() / "ceilings" / f"{digest}.json"


def _read(path: Path) -> MeasuredCeilings | None:
    try:
        earlier = MeasuredCeilings(**json.loads(path.read_text(encoding="utf-8")))
        rates = [earlier.copy_bytes_per_s, earlier.read_bytes_per_s, *earlier.gemm_flops.values()]
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return earlier if all(isinstance(rate, float) for rate in rates) else None


def _write(path: Path, ceilings: MeasuredCeilings) -> None:
    """Atomically: another process may read at any moment."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".ceilings.", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(ceilings), file, indent=2)
        os.replace(temporary, path)
