"""What a benchmark of kernels leaves behind: its schema, what follows from it, and its files.

Knows nothing about how anything was measured; imports no torch. The law: every derived number is a
function of the rows and of the ceilings that were measured in the same run; a file is written once.
Units are in the names, as in `llmopt.results.schema`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmopt.errors import ResultError
from llmopt.results import files
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import Ceilings, Environment

KERNEL_SCHEMA_VERSION = 1
OURS = "llmopt"


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One contender at one shape.

    variant: the kernel that ran, in words; problem: why there is no time, such as a wrong output;
    median_s, low_s, high_s: median and quartiles of `num_rounds` rounds; is_graph: a CUDA graph was
    timed, and so no launches of the host; num_bytes: read and written at least; flops_dtype: of
    the ceiling that bounds its operations.
    """

    kernel: str
    shape: str
    num_tokens: int
    contender: str
    variant: str
    problem: str | None
    median_s: float | None
    low_s: float | None
    high_s: float | None
    num_rounds: int
    is_graph: bool
    num_bytes: int
    num_flops: float
    flops_dtype: str


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Steps of the engine with random weights.

    stage: "decode" or "prefill"; batch: requests; context: tokens that a request has in the cache
    in the middle of the measurement; step_s: median; host_s: of a step, in which the host was busy
    with scheduling and recording; num_bytes, num_flops: that a step needs.
    """

    scheme: str
    stage: Literal["decode", "prefill"]
    batch: int
    context: int
    num_steps: int
    step_s: float | None
    host_s: float | None
    num_bytes: float | None
    num_flops: float | None
    kernels: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One run on one device. gpu_driver, triton: None where there is none.

    peers: versions of other libraries that were compared. unfinished: stages or kernels whose time
    was up before they were through.
    """

    schema_version: int
    kind: Literal["kernels"]
    environment: Environment
    gpu_driver: str | None
    cuda: str | None
    triton: str | None
    peers: dict[str, str]
    ceilings: Ceilings
    shapes: str
    rows: tuple[KernelRow, ...]
    engine: tuple[EngineRow, ...] = ()
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Crossover:
    """For a matrix: the time of bf16 over that of the quantized weight, by tokens of the batch.

    up_to: the largest batch up to which it never was slower; 0: it was at the first one.
    """

    kernel: str
    shape: str
    speedups: tuple[tuple[int, float], ...]
    up_to: int


def bandwidth(row: KernelRow | EngineRow) -> float | None:
    """Bytes per second."""
    seconds = _seconds(row)
    return None if seconds is None or row.num_bytes is None else row.num_bytes / seconds


def flops(row: KernelRow | EngineRow) -> float | None:
    """Operations per second; None for a kernel that is not counted in them."""
    seconds = _seconds(row)
    return None if seconds is None or not row.num_flops else row.num_flops / seconds


def bandwidth_share(row: KernelRow | EngineRow, ceilings: Ceilings) -> float | None:
    """Of the memory's ceiling: the faster of reading and copying."""
    rate = bandwidth(row)
    best = max(ceilings.read_bytes_per_s, ceilings.copy_bytes_per_s)
    return None if rate is None else rate / best


def flops_share(row: KernelRow | EngineRow, ceilings: Ceilings) -> float | None:
    """Of the ceiling of products in the dtype that is multiplied; of the engine: in bfloat16."""
    rate = flops(row)
    dtype = row.flops_dtype if isinstance(row, KernelRow) else "bfloat16"
    ceiling = ceilings.gemm_flops.get(dtype)
    return None if rate is None or ceiling is None else rate / ceiling


def ceiling_share(row: KernelRow | EngineRow, ceilings: Ceilings) -> float | None:
    """The larger share: of the ceiling that bounds it."""
    shares = [bandwidth_share(row, ceilings), flops_share(row, ceilings)]
    return max((share for share in shares if share is not None), default=None)


def crossovers(rows: Sequence[KernelRow], baseline: str) -> list[Crossover]:
    """Ours beside a baseline, for each kernel and shape that has both, batches in rising order."""
    times: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for row in rows:
        if row.median_s is not None and row.contender in (OURS, baseline):
            by_tokens = times.setdefault((row.kernel, row.shape), {})
            by_tokens.setdefault(row.num_tokens, {})[row.contender] = row.median_s
    found = []
    for (kernel, shape), by_tokens in times.items():
        speedups = tuple(
            (tokens, both[baseline] / both[OURS])
            for tokens, both in sorted(by_tokens.items())
            if len(both) == 2
        )
        if speedups:
            found.append(Crossover(kernel, shape, speedups, _up_to(speedups)))
    return found


def write_kernel_result(directory: str | Path, result: KernelResult) -> Path:
    """Write the next file of the device: "<directory>/<device>/<4 digits>-<git sha>.json".

    Raises OutputError.
    """
    device = re.sub(r"[^a-z0-9]+", "-", result.environment.device.lower()).strip("-") or "device"
    folder = Path(directory) / device
    sha = (result.environment.git_sha or "nogit")[:7]
    taken = (path.name.partition("-")[0] for path in folder.glob("[0-9]*.json"))
    number = 1 + max((int(digits) for digits in taken if digits.isdecimal()), default=0)
    document = to_json(result)
    while not files.write_new(path := folder / f"{number:04d}-{sha}.json", document):
        number += 1
    return path


def read_kernel_result(path: str | Path) -> KernelResult:
    """The result in a file. Raises ResultError: unreadable, of another kind or schema."""
    document = files.read(Path(path))
    if document.get("kind") != "kernels":
        raise ResultError(f"{path} is not a benchmark of kernels", "Leave it out.")
    version = document.get("schema_version")
    if version != KERNEL_SCHEMA_VERSION:
        raise ResultError(
            f"{path} has the schema {version!r}; this llmopt reads {KERNEL_SCHEMA_VERSION}",
            "Measure again, or use the llmopt that wrote it.",
        )
    return from_json(KernelResult, document, str(path))


def _seconds(row: KernelRow | EngineRow) -> float | None:
    return row.median_s if isinstance(row, KernelRow) else row.step_s


def _up_to(speedups: Sequence[tuple[int, float]]) -> int:
    best = 0
    for tokens, speedup in speedups:
        if speedup < 1:
            break
        best = tokens
    return best
