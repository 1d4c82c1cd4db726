"""The rows of a benchmark of kernels as text.

Knows nothing of measuring. The law: every figure shown is in the result, or follows from it by
`llmopt.results.kernels`.
"""

from collections.abc import Iterator, Sequence

from bench.linear_cases import BASELINE
from llmopt.results.kernels import (
    OURS,
    Crossover,
    EngineRow,
    KernelResult,
    KernelRow,
    bandwidth,
    bandwidth_share,
    ceiling_share,
    crossovers,
    flops,
)
from llmopt.results.schema import Ceilings

_BAR = 20  # characters of a speed-up of _FULL
_FULL = 4.0
_HEADER = ("shape", "batch", "who", "time", "GB/s", "TFLOP/s", "of ceiling", "", "")


def kernel_table(result: KernelResult) -> Iterator[str]:
    """Lines: the device, its ceilings, each kernel's rows, and the crossover charts."""
    yield from _head(result)
    for kernel in dict.fromkeys(row.kernel for row in result.rows):
        rows = [row for row in result.rows if row.kernel == kernel]
        yield ""
        yield kernel
        yield from _aligned([_HEADER, *_kernel_cells(rows, result.ceilings)])
    yield from crossover_chart(crossovers(result.rows, BASELINE))
    if result.engine:
        yield from _engine_lines(result.engine, result.ceilings)
    if result.unfinished:
        yield ""
        yield f"the time was up: {', '.join(result.unfinished)}"


def crossover_chart(found: Sequence[Crossover]) -> Iterator[str]:
    """How much faster than bf16, batch by batch; the mark is where both are equal."""
    equal = round(_BAR / _FULL)
    for crossover in found:
        yield ""
        if crossover.up_to == crossover.speedups[-1][0]:
            verdict = f"never slower than bf16 up to batch {crossover.up_to}, the largest measured"
        elif crossover.up_to:
            verdict = f"not slower than bf16 up to batch {crossover.up_to}"
        else:
            verdict = f"slower than bf16 at batch {crossover.speedups[0][0]}"
        yield f"{crossover.kernel} {crossover.shape}: {verdict}"
        for tokens, speedup in crossover.speedups:
            filled = min(_BAR, round(_BAR * speedup / _FULL))
            bar = "".join(
                "|" if place == equal else "#" if place < filled else " " for place in range(_BAR)
            )
            yield f"  {tokens:6} {bar} {speedup:5.2f}x"


def _head(result: KernelResult) -> Iterator[str]:
    environment, ceilings = result.environment, result.ceilings
    software = [f"torch {environment.torch}"]
    software += [f"triton {result.triton}"] if result.triton else []
    software += [f"CUDA {result.cuda}"] if result.cuda else []
    software += [f"driver {result.gpu_driver}"] if result.gpu_driver else []
    software += [f"{name} {version}" for name, version in result.peers.items()]
    yield f"{environment.device}: {', '.join(software)}"
    products = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in ceilings.gemm_flops.items())
    yield (
        f"ceilings, measured now: reads {ceilings.read_bytes_per_s / 1e9:.4g} GB/s, copies"
        f" {ceilings.copy_bytes_per_s / 1e9:.4g} GB/s; products in TFLOP/s: {products}"
    )


def _kernel_cells(rows: Sequence[KernelRow], ceilings: Ceilings) -> Iterator[tuple[str, ...]]:
    """Ours first, then each other with how much faster ours is."""
    ours = {(row.shape, row.num_tokens): row.median_s for row in rows if row.contender == OURS}
    for row in rows:
        name = f"{row.contender} ({row.variant})" if row.variant else row.contender
        own = ours.get((row.shape, row.num_tokens))
        beside = ""
        if row.contender != OURS and own is not None and row.median_s is not None:
            beside = f"llmopt {row.median_s / own:.2f}x"
        yield (
            row.shape,
            str(row.num_tokens),
            name,
            *_rates(row, row.median_s, ceilings),
            beside,
            row.problem
            or ("with launches" if ceilings.device == "cuda" and not row.is_graph else ""),
        )


def _engine_lines(rows: Sequence[EngineRow], ceilings: Ceilings) -> Iterator[str]:
    yield ""
    yield "engine, random weights of an 8B model"
    header = ("weights", "stage", "batch", "context", "step", "GB/s", "TFLOP/s", "of ceiling")
    cells = [(*header, "tokens/s", "host", "")]
    for row in rows:
        new = row.batch if row.stage == "decode" else row.batch * row.context
        host = ""
        if row.host_s is not None and row.step_s:
            host = f"{row.host_s / row.step_s:.1%}"
        cells.append(
            (
                row.scheme,
                row.stage,
                str(row.batch),
                str(row.context),
                *_rates(row, row.step_s, ceilings),
                f"{new / row.step_s:.5g}" if row.step_s else "",
                host,
                row.problem or "",
            )
        )
    yield from _aligned(cells)


def _rates(
    row: KernelRow | EngineRow, seconds: float | None, ceilings: Ceilings
) -> tuple[str, str, str, str]:
    if seconds is None:
        return "", "", "", ""
    share, of_memory = ceiling_share(row, ceilings), bandwidth_share(row, ceilings)
    bound = "memory" if share == of_memory else "products"
    bytes_per_s, operations = bandwidth(row), flops(row)
    return (
        _time(seconds),
        "" if bytes_per_s is None else f"{bytes_per_s / 1e9:.4g}",
        "" if operations is None else f"{operations / 1e12:.4g}",
        "" if share is None else f"{share:.0%} {bound}",
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.4g} us" if seconds < 1e-3 else f"{seconds * 1e3:.4g} ms"


def _aligned(cells: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {line.rstrip()}"
