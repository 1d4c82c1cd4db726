"""The targets for an H100 or H200, beside what was measured.

Knows nothing of measuring. The law: a share is of a ceiling that the same run measured, and a
target without a measurement is told as such.
"""

from collections.abc import Iterator

from bench.linear_cases import BASELINE
from llmopt.results.kernels import (
    OURS,
    EngineRow,
    KernelResult,
    KernelRow,
    bandwidth_share,
    crossovers,
    flops_share,
)

_PEERS = ("tinygemm", "gemlite")


def target_lines(result: KernelResult) -> Iterator[str]:
    """One line for each target."""
    for scheme, least in (("bf16", 0.8), ("w4g128", 0.7)):
        row = _engine_row(result, scheme, "decode", 1)
        share = None if row is None else bandwidth_share(row, result.ceilings)
        yield _line(f"decode, batch 1, {scheme}: share of bandwidth", share, least)
    prompts = [row for row in result.engine if row.stage == "prefill" and row.scheme == "bf16"]
    longest = max(prompts, key=lambda row: row.context, default=None)
    share = None if longest is None else flops_share(longest, result.ceilings)
    yield _line("prefill, longest prompt, bf16: MFU", share, 0.6)
    yield _line("linear layers of the longest prompt, bf16: share of peak", _of_peak(result), 0.8)
    yield _line("attention, decode, longest context: share of bandwidth", _attention(result), 0.8)
    speedups = [
        crossover.speedups
        for crossover in crossovers(result.rows, BASELINE)
        if crossover.shape.startswith("w4")
    ]
    small = [value for pairs in speedups for tokens, value in pairs if tokens <= 16]
    yield _line("w4 over bf16, batch 1 to 16, least", min(small, default=None), 2.8)
    every = [value for pairs in speedups for _, value in pairs]
    yield _line("w4 over bf16, any batch, least", min(every, default=None), 1.0)
    for peer in _PEERS:
        found = [
            value
            for crossover in crossovers(result.rows, peer)
            for tokens, value in crossover.speedups
            if tokens <= 64
        ]
        yield _line(f"w4 over {peer}, batch 1 to 64, least", min(found, default=None), 1.0)
    row = _engine_row(result, "bf16", "decode", 64)
    busy = None
    if row is not None and row.host_s is not None and row.step_s:
        busy = row.host_s / row.step_s
    yield _line("host, share of a decode step at batch 64", busy, 0.1, is_most=True)


def _line(name: str, value: float | None, limit: float, *, is_most: bool = False) -> str:
    if value is None:
        return f"  not measured  {name}"
    kept = value <= limit if is_most else value >= limit
    bound = "at most" if is_most else "at least"
    return f"  {'kept' if kept else 'missed':12}  {name}: {value:.3g} ({bound} {limit:g})"


def _engine_row(result: KernelResult, scheme: str, stage: str, batch: int) -> EngineRow | None:
    rows = (row for row in result.engine if (row.scheme, row.stage) == (scheme, stage))
    return next((row for row in rows if row.batch == batch), None)


def _of_peak(result: KernelResult) -> float | None:
    """Of the products in bf16 of the largest batch, all matrices together."""
    rows = [row for row in result.rows if row.contender == BASELINE and row.kernel == "wna16"]
    largest = max((row.num_tokens for row in rows), default=0)
    # both schemes of the kernel have the same products in bf16: once is enough
    rows = [r for r in rows if r.num_tokens == largest and r.shape.startswith("w4")]
    peak = result.ceilings.gemm_flops.get("bfloat16")
    seconds = [row.median_s for row in rows if row.median_s is not None]
    if peak is None or not rows or len(seconds) < len(rows):
        return None
    return sum(row.num_flops for row in rows) / sum(seconds) / peak


def _attention(result: KernelResult) -> float | None:
    rows = [
        row
        for row in result.rows
        if row.kernel == "paged_attention" and row.shape.startswith("decode bf16")
    ]
    longest = max(rows, key=_moved, default=None)
    return None if longest is None else bandwidth_share(longest, result.ceilings)


def _moved(row: KernelRow) -> tuple[bool, int]:
    return row.contender == OURS and row.median_s is not None, row.num_bytes
