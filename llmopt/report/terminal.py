"""The report for a terminal, and as plain text for a file or a pipe.

Knows nothing about where the numbers come from. The law: nothing is cut off, and no number is
wrapped; a table that is wider than the terminal, or 100 columns, becomes several below each other.
"""

from collections.abc import Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmopt.report.columns import Column
from llmopt.report.report import Report, Section
from llmopt.report.rows import Row
from llmopt.report.table_parts import table_parts

MIN_WIDTH = 100

_STYLES = {"ok": "", "invalid": "yellow", "failed": "red"}


def print_report(report: Report, out: TextIO) -> None:
    """Write the tables and notes to `out`; with colours and its width if it is a terminal."""
    console = Console(file=out, highlight=False)
    if console.is_terminal and console.width >= MIN_WIDTH:
        _print(report, console, (*report.notes, *report.mark_notes))
        return
    console = Console(file=out, highlight=False, width=MIN_WIDTH)
    with console.capture() as capture:
        _print(report, console, report.notes)
    out.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _print(report: Report, console: Console, lines: Sequence[str]) -> None:
    for section in report.sections:
        parts = table_parts(section.columns, section.rows, console.width)
        for index, columns in enumerate(parts):
            title = section.title if index == 0 else f"{section.title} (continued)"
            console.print(_table(section, title, columns))
            console.print()
    notes = Table.grid(padding=(0, 1))
    for note in lines:
        notes.add_row("*", Text(note))
    console.print(notes, style="dim")


def _table(section: Section, title: str, columns: Sequence[Column]) -> Table:
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for column in columns:
        table.add_column(
            column.header,
            justify="right" if column.is_number else "left",
            vertical="bottom",
            no_wrap=column.is_number,
            overflow="fold",
        )
    previous: Row | None = None
    for index, row in enumerate(section.rows):
        if previous is not None and previous.load != row.load:
            table.add_section()
        cells = (
            Text(column.text(row), style="bold" if section.is_best(index, column) else "")
            for column in columns
        )
        table.add_row(*cells, style=_STYLES[row.status])
        previous = row
    return table
