"""A benchmark of kernels, from what was asked to a result, within its time.

Knows nothing of the command line. The law: what was measured before the time was up is in the
result, and what was not is named.
"""

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from bench.ceilings import Sizes, measure_ceilings
from bench.peers import peer_versions
from bench.shapes import SHAPES
from bench.suite import SUITE, measure_kernel
from bench.timing import Effort
from llmopt.errors import UsageError
from llmopt.hardware.device import device_facts, environment_facts
from llmopt.results.kernels import KERNEL_SCHEMA_VERSION, KernelResult, KernelRow
from llmopt.results.schema import Ceilings, Environment

Progress = Callable[[KernelRow], None]


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What is measured.

    kernels: names of `SUITE`; empty: all. shapes: a name of `SHAPES`. effort: of each case; None:
    outputs are checked and nothing is timed. time_s: for all of it; None: as long as it takes.
    """

    kernels: tuple[str, ...]
    device: torch.device
    shapes: str
    effort: Effort | None
    time_s: float | None = None


def check_kernels(kernels: Sequence[str]) -> None:
    """Raises UsageError: there is no such kernel."""
    unknown = [name for name in kernels if name not in SUITE]
    if unknown:
        raise UsageError(f"there is no kernel {unknown[0]!r}", f"Use one of {', '.join(SUITE)}.")


def measure_rows(
    options: KernelOptions, progress: Progress
) -> tuple[list[KernelRow], tuple[str, ...]]:
    """The rows, and the kernels whose cases were not all reached. Raises UsageError."""
    check_kernels(options.kernels)
    end = None if options.time_s is None else time.monotonic() + options.time_s
    rows: list[KernelRow] = []
    unfinished: list[str] = []
    names = options.kernels or tuple(SUITE)
    for position, name in enumerate(names):
        share = None
        if end is not None:  # what is left is for all that are left
            now = time.monotonic()
            share = now + (end - now) / (len(names) - position)
        for case in measure_kernel(name, options.device, SHAPES[options.shapes], options.effort):
            rows += case
            for row in case:
                progress(row)
            if share is not None and time.monotonic() > share:
                unfinished.append(name)
                break
    return rows, tuple(unfinished)


def make_result(
    device: torch.device,
    ceilings: Ceilings,
    shapes: str,
    rows: Sequence[KernelRow],
    unfinished: Sequence[str] = (),
) -> KernelResult:
    """The rows with where they were measured."""
    gpu = device_facts().gpu if device.type == "cuda" else None
    has_triton = importlib.util.find_spec("triton") is not None
    return KernelResult(
        schema_version=KERNEL_SCHEMA_VERSION,
        kind="kernels",
        environment=Environment(**asdict(environment_facts(device.type))),
        gpu_driver=None if gpu is None else gpu.driver,
        cuda=torch.version.cuda,
        triton=importlib.metadata.version("triton") if has_triton else None,
        peers=peer_versions(),
        ceilings=ceilings,
        shapes=shapes,
        rows=tuple(rows),
        unfinished=tuple(unfinished),
    )


def run_kernels(
    options: KernelOptions, progress: Progress, sizes: Sizes | None = None
) -> KernelResult:
    """Measure the ceilings and the kernels. Raises UsageError."""
    check_kernels(options.kernels)
    ceilings = measure_ceilings(options.device, options.effort or Effort(), sizes)
    rows, unfinished = measure_rows(options, progress)
    return make_result(options.device, ceilings, options.shapes, rows, unfinished)
