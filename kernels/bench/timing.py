"""How long calls take: contenders take turns, every call finds its data in memory and not in a
cache, and the median of the rounds counts.

Knows nothing of what is called. The law: all contenders are measured in the same rounds, so that
clocks, heat and neighbours change for all of them alike.

On a GPU the time is that between two events around the replay of a CUDA graph of the call, so what
the host takes to launch does not count; a call that cannot be captured is launched as it is, and
its timing says so. Before each call a buffer of several times the cache is read: writing one, as
`triton.testing.do_bench` does, leaves dirty lines, whose write-back the next kernel would pay for.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]
_CPU_FLUSH_BYTES = 256 << 20  # more than most processors cache
_GPU_CACHES = 4  # so many times the level 2 cache
_NUM_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for a timing: at least `min_rounds`, then on until `budget_s` or
    `max_rounds`. flush_bytes: what is read before each call; None: as the device's cache needs.
    """

    budget_s: float = 0.5
    min_rounds: int = 5
    max_rounds: int = 100
    flush_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a call: median, quartiles and least of its rounds."""

    median_s: float
    low_s: float
    high_s: float
    best_s: float
    num_rounds: int
    is_graph: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that raised; `reason` is the first line of what it said."""

    reason: str


def time_calls(
    calls: Mapping[str, Call], device: torch.device, effort: Effort
) -> dict[str, Timing | Failure]:
    """Measure calls in turn, each on warm code and cold data."""
    found: dict[str, Timing | Failure] = {}
    launches: dict[str, tuple[Call, bool]] = {}
    for name, call in calls.items():
        try:
            for _ in range(_NUM_WARM_UPS):
                call()
            _wait(device)
            launches[name] = _prepare(call, device)
        except Exception as error:  # a contender that cannot run is a row that says why
            found[name] = Failure(first_line(error))
    seconds = _rounds({name: launch for name, (launch, _) in launches.items()}, device, effort)
    for name, (_, is_graph) in launches.items():
        found[name] = _timing(seconds[name], is_graph)
    return {name: found[name] for name in calls}


def first_line(error: Exception) -> str:
    """What an error says, in short, behind its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _timing(seconds: list[float], is_graph: bool) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high, min(seconds), len(seconds), is_graph)


def _prepare(call: Call, device: torch.device) -> tuple[Call, bool]:
    """The call as it is timed, and whether it is the replay of a CUDA graph."""
    if device.type != "cuda":
        return call, False
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = call()
    except RuntimeError:  # it waits for the GPU, or allocates what a graph may not
        torch.cuda.synchronize(device)
        return call, False

    def replay() -> object:
        graph.replay()
        return kept

    replay()
    torch.cuda.synchronize(device)
    return replay, True


def _rounds(
    launches: Mapping[str, Call], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    flush = _flusher(device, effort.flush_bytes)
    one_round = _gpu_round if device.type == "cuda" else _cpu_round
    seconds: dict[str, list[float]] = {name: [] for name in launches}
    order = list(launches)
    end = time.perf_counter() + effort.budget_s
    for done in range(effort.max_rounds if launches else 0):
        if done >= max(effort.min_rounds, 2) and time.perf_counter() > end:
            break
        for name, taken in one_round({name: launches[name] for name in order}, flush).items():
            seconds[name].append(taken)
        order = [*order[1:], order[0]]  # no one is always behind the same one
    return seconds


def _cpu_round(launches: Mapping[str, Call], flush: Call) -> dict[str, float]:
    seconds = {}
    for name, launch in launches.items():
        flush()
        start = time.perf_counter()
        launch()
        seconds[name] = time.perf_counter() - start
    return seconds


def _gpu_round(launches: Mapping[str, Call], flush: Call) -> dict[str, float]:
    event: Callable[..., Any] = torch.cuda.Event
    events = {}
    for name, launch in launches.items():
        start, end = event(enable_timing=True), event(enable_timing=True)
        flush()
        start.record()
        launch()
        end.record()
        events[name] = (start, end)
    torch.cuda.synchronize()
    return {name: start.elapsed_time(end) * 1e-3 for name, (start, end) in events.items()}


def _flusher(device: torch.device, num_bytes: int | None) -> Call:
    """Reads a buffer, so that nothing else is left in the caches."""
    if num_bytes is None:
        num_bytes = _CPU_FLUSH_BYTES
        if device.type == "cuda":
            num_bytes = _GPU_CACHES * torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.zeros(max(1, num_bytes // 4), dtype=torch.float32, device=device)
    total = torch.empty((), device=device)
    return lambda: torch.sum(buffer, dim=0, out=total)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
