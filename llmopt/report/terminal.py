"""The report for a terminal, and as plain text for a file or a pipe.

Knows nothing about where the numbers come from. The law: nothing is cut off; the table fits 100
columns with target names of up to 14 characters, and a longer name is folded.
"""

from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmopt.report.columns import columns_of
from llmopt.report.report import Report, Section
from llmopt.report.rows import Row

MIN_WIDTH = 100

_STYLES = {"ok": "", "invalid": "yellow", "failed": "red"}


def print_report(report: Report, out: TextIO) -> None:
    """Write the tables and notes to `out`; with colours and its width if it is a terminal."""
    console = Console(file=out, highlight=False)
    if console.is_terminal and console.width >= MIN_WIDTH:
        _print(report, console)
        return
    console = Console(file=out, highlight=False, width=MIN_WIDTH)
    with console.capture() as capture:
        _print(report, console)
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _print(report: Report, console: Console) -> None:
    for section in report.sections:
        console.print(_table(section))
        console.print()
    notes = Table.grid(padding=(0, 1))
    for note in report.notes:
        notes.add_row("*", Text(note))
    console.print(notes, style="dim")


def _table(section: Section) -> Table:
    table = Table(
        title=Text(section.title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    columns = columns_of(section.rows)
    for column in columns:
        table.add_column(
            column.header,
            justify="right" if column.is_number else "left",
            vertical="bottom",
            no_wrap=column.is_number,
            overflow="fold",
        )
    previous: Row | None = None
    for row in section.rows:
        if previous is not None and previous.load != row.load:
            table.add_section()
        cells = (Text(column.text(row)) for column in columns)
        table.add_row(*cells, style=_STYLES[row.status])
        previous = row
    return table
