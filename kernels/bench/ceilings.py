"""What the device can do at best, measured in the run that compares with it.

Knows nothing of kernels. The law: nothing is taken from an earlier run or a data sheet; a rate is
the best of its rounds. (`llmopt.hardware.ceilings` remembers: it serves runs of minutes, which
cannot measure beside themselves.)

Reading is a sum, copying is as in STREAM (McCalpin, 1995), products are square.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from bench.timing import Call, Effort, Timing, time_calls
from llmopt.results.schema import Ceilings


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the arrays, and the side of the matrices."""

    array_bytes: int
    matrix: int


SIZES: Mapping[str, Sizes] = {"cpu": Sizes(256 << 20, 1536), "cuda": Sizes(2 << 30, 8192)}


def measure_ceilings(device: torch.device, effort: Effort, sizes: Sizes | None = None) -> Ceilings:
    """The rates of a device; of products those that it has."""
    sizes = sizes or SIZES[device.type]
    rates: dict[str, float] = {}
    calls = {**_memory_calls(device, sizes), **_product_calls(device, sizes.matrix)}
    timings = time_calls({name: call for name, (_, call) in calls.items()}, device, effort)
    for name, (work, _) in calls.items():
        timing = timings[name]
        if isinstance(timing, Timing):
            rates[name] = work / timing.best_s
    return Ceilings(
        gemm_flops={name: rate for name, rate in rates.items() if name not in ("read", "copy")},
        copy_bytes_per_s=rates["copy"],
        read_bytes_per_s=rates["read"],
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_threads=torch.get_num_threads(),
        device=device.type,
    )


def _memory_calls(device: torch.device, sizes: Sizes) -> dict[str, tuple[float, Call]]:
    source = torch.ones(sizes.array_bytes // 4, device=device)
    target, total = torch.empty_like(source), torch.empty((), device=device)
    return {
        "read": (source.nbytes, lambda: torch.sum(source, dim=0, out=total)),
        "copy": (2 * source.nbytes, lambda: target.copy_(source)),
    }


def _product_calls(device: torch.device, side: int) -> dict[str, tuple[float, Call]]:
    """Products by the dtype of their operands, each with its operations."""
    ones = torch.ones(side, side, device=device)
    wide, narrow = torch.rand_like(ones), torch.rand_like(ones).bfloat16()
    small = torch.randint(-8, 8, (side, side), device=device, dtype=torch.int8)
    calls: dict[str, Call] = {
        "float32": lambda: wide @ wide,
        "bfloat16": lambda: narrow @ narrow,
        "int8": lambda: torch._int_mm(small, small.t()),
    }
    if device.type == "cuda":
        halves = narrow.to(torch.float8_e4m3fn)
        rows, columns = ones[:, :1].contiguous(), ones[:1].contiguous()
        calls["float8_e4m3fn"] = lambda: torch._scaled_mm(
            halves, halves.t(), scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16
        )
    return {name: (2.0 * side**3, call) for name, call in calls.items()}
