"""The verdict for a terminal, and as plain text for a pipe.

Knows nothing about where the numbers come from. The law: 100 columns where there is no terminal,
and nothing is cut off.
"""

from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmopt.report.gate.verdict import GateReport
from llmopt.report.gate.wording import (
    change_text,
    headline,
    reason_text,
    tolerance_text,
    value_text,
)

MIN_WIDTH = 100

_STYLES = {"PASS": "green", "REGRESSED": "bold red", "INCONCLUSIVE": "yellow"}


def print_gate(report: GateReport, out: TextIO) -> None:
    """Write the table, what is open and why, the notes and the verdict."""
    console = Console(file=out, highlight=False)
    if console.is_terminal and console.width >= MIN_WIDTH:
        _print(report, console)
        return
    console = Console(file=out, highlight=False, width=MIN_WIDTH, color_system=None)
    with console.capture() as capture:
        _print(report, console)
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _print(report: GateReport, console: Console) -> None:
    console.print(_table(report))
    for row in report.rows:
        if row.verdict != "PASS":
            text = f"{row.verdict} {row.cell_id} {row.metric}: {reason_text(row)}"
            console.print(Text(text, style=_STYLES[row.verdict]))
    for note in report.notes:
        console.print(Text(f"* {note}", style="dim"))
    console.print(Text(headline(report), style=_STYLES[report.verdict]))


def _table(report: GateReport) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("Cell", overflow="fold")
    table.add_column("Metric", overflow="fold")
    for header in ("Before", "After", "Change [90 %]", "Allowed"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    previous = ""
    for row in report.rows:
        table.add_row(
            Text(row.cell_id if row.cell_id != previous else ""),
            Text(row.metric),
            value_text(row.before),
            value_text(row.after),
            change_text(row),
            tolerance_text(row),
            Text(row.verdict, style=_STYLES[row.verdict]),
        )
        previous = row.cell_id
    return table
