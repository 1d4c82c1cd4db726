"""The profiles of result files as tables: what each part of a step takes, and what it needs.

Knows nothing about how steps were timed. The law: a table fits 100 columns.
"""

from collections.abc import Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmopt.report.attribution import profile_title
from llmopt.report.columns import MISSING, three_digits
from llmopt.results.attribution import ProfiledPart, StepProfile
from llmopt.results.schema import CellResult

WIDTH = 100
DEFINITION = (
    "Medians over the steps; a part is all its calls in a step. ideal: the longer of its bytes and "
    "its FLOPs at the ceilings measured on this machine; ratio: the part / its ideal (below 1: its "
    "bytes came from a processor's cache)."
)
_KERNEL_WIDTH = 24
_MIN_IDEAL_S = 5e-7  # less is printed as 0: no ratio to it means anything


def print_profiles(results: Sequence[CellResult], out: TextIO) -> None:
    """Write the tables of all cells that were profiled, and what their columns mean."""
    console = Console(file=out, highlight=False, width=WIDTH)
    with console.capture() as capture:
        for result in results:
            for profile in result.profile:
                console.print(_table(result.cell_id, profile))
                console.print(Text(_timers(profile)), style="dim")
                console.print()
        if any(result.profile for result in results):
            console.print(Text(DEFINITION), style="dim")
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _table(cell_id: str, profile: StepProfile) -> Table:
    title = f"{cell_id}: {profile_title(profile)}, {profile.context} tokens of context"
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("part", overflow="fold")
    table.add_column("kernel", overflow="fold", max_width=_KERNEL_WIDTH)
    for header in ("calls", "ms", "%", "ideal ms", "ratio", "GB/s", "GFLOP/s"):
        table.add_column(header, justify="right", no_wrap=True)
    for part in profile.parts:
        table.add_row(*map(Text, _cells(part, profile.profiled_s)))
    return table


def _cells(part: ProfiledPart, step_s: float) -> tuple[str, ...]:
    return (
        part.name,
        part.kernel or "",
        f"{part.num_calls:.0f}" if part.num_calls else MISSING,
        f"{1000 * part.seconds:.3f}",
        f"{100 * part.seconds / step_s:.1f}",
        MISSING if part.ideal_s is None else f"{1000 * part.ideal_s:.3f}",
        _quotient(part.seconds, part.ideal_s),
        _rate(part.num_bytes, part.seconds),
        _rate(part.num_flops, part.seconds),
    )


def _quotient(seconds: float, ideal_s: float | None) -> str:
    if ideal_s is None or ideal_s < _MIN_IDEAL_S:
        return MISSING
    return three_digits(seconds / ideal_s)


def _rate(work: float | None, seconds: float) -> str:
    return MISSING if work is None or seconds <= 0 else three_digits(work / seconds / 1e9)


def _timers(profile: StepProfile) -> str:
    cost = profile.profiled_s / profile.step_s - 1
    return (
        f"{profile.num_steps} steps each; without timers {1000 * profile.step_s:.3f} ms, with them "
        f"{1000 * profile.profiled_s:.3f} ms ({100 * cost:+.1f} %)"
    )
