"""Whether two results come from the same machine, as far as results say.

Knows nothing about rules. The law: speeds of different machines are never compared, unless as
ratios to a reference cell that was measured on each.
"""

from collections.abc import Iterable, Iterator

from llmopt.errors import UsageError
from llmopt.report.gate.matching import CellPair
from llmopt.results.schema import Ceilings, CellResult

MAX_CEILING_CHANGE = 0.10
MAX_MEMORY_CHANGE = 0.02  # virtual machines of one kind differ by a few pages


def require_same_machine(pairs: Iterable[CellPair]) -> None:
    """Raises UsageError, naming every difference, if cells with runs are of different machines.

    The measured ceilings must agree within 10 %, but not of runs that were made by turns: a ceiling
    is measured at one moment, and such runs share every one of them.
    """
    found: dict[str, None] = {}
    for pair in pairs:
        if pair.old.runs and pair.new.runs:
            found |= dict.fromkeys(differences(pair.old, pair.new, pair.is_interleaved))
    if found:
        raise UsageError(
            f"the baseline is of another machine: {'; '.join(found)}",
            "Measure it here (llmopt gate --run RECIPE --against REVISION), or compare ratios to a"
            " cell of both with --relative-to CELL.",
        )


def differences(old: CellResult, new: CellResult, is_interleaved: bool) -> Iterator[str]:
    """What differs between the machines of two results, in words."""
    before, after = old.environment, new.environment
    for name in ("device", "cores", "num_threads", "torch"):
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            yield f"{name.replace('num_', '')} {was} before, {now} now"
    if _change(before.memory_bytes, after.memory_bytes) > MAX_MEMORY_CHANGE:
        was, now = before.memory_bytes / 1e9, after.memory_bytes / 1e9
        yield f"memory {was:.1f} GB before, {now:.1f} GB now"
    if old.ceilings is not None and new.ceilings is not None and not is_interleaved:
        yield from _ceiling_differences(old.ceilings, new.ceilings)


def _ceiling_differences(old: Ceilings, new: Ceilings) -> Iterator[str]:
    values = {"read bandwidth": (old.read_bytes_per_s, new.read_bytes_per_s)}
    for dtype in old.gemm_flops.keys() & new.gemm_flops.keys():
        values[f"{dtype} GEMM peak"] = (old.gemm_flops[dtype], new.gemm_flops[dtype])
    for name, (was, now) in sorted(values.items()):
        if _change(was, now) > MAX_CEILING_CHANGE:
            yield f"{name} {was / 1e9:.3g} G/s before, {now / 1e9:.3g} now"


def _change(old: float, new: float) -> float:
    return abs(new - old) / old
