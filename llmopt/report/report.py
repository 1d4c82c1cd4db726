"""A report: rows in comparable sections, and notes. What every renderer is given.

Knows nothing about formats. The law: rows that were measured on different machines never stand in
one section, nor do speed and quality only; rows of different backends or recipes only where the
reader's choice of groups asks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.errors import ResultError, UsageError
from llmopt.report.best import Mark, best_cells
from llmopt.report.choice import EVERYTHING, Choice, choice_notes, section_title, sorted_rows
from llmopt.report.column_choice import chosen_columns, columns_of
from llmopt.report.columns import Column
from llmopt.report.notes import make_notes
from llmopt.report.rows import Row, make_rows, newest
from llmopt.results.schema import CellResult

BEST_NOTE = (
    "Bold: the best of its column under one load, where its 95 % interval ends before that of "
    "every other row begins. Nothing is bold where the runs cannot tell."
)


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that may be compared with each other, and their columns."""

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    best: frozenset[Mark]

    def is_best(self, index: int, column: Column) -> bool:
        """Whether row number `index` is the best in a column, as far as the data can tell."""
        return (index, column.name) in self.best


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says: sections of rows, and the notes under them."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    choice: Choice = EVERYTHING

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all sections."""
        return tuple(row for section in self.sections for row in section.rows)

    @property
    def mark_notes(self) -> tuple[str, ...]:
        """The note on marks, for the formats that show any."""
        return (BEST_NOTE,) if any(section.best for section in self.sections) else ()


def make_report(
    results: Sequence[CellResult],
    errors: Sequence[ResultError] = (),
    choice: Choice = EVERYTHING,
) -> Report:
    """Return the report of these results; `errors` are the files that could not be read.

    Raises UsageError for a choice that makes no sense, or that leaves no row.
    """
    kept, rows = shown_rows(results, choice)
    num_superseded = len(results) - len(newest(results))
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        title = section_title(row, choice.group_by)
        groups.setdefault((title, row.load is None), []).append(row)
    return Report(
        sections=tuple(_section(title, members, choice) for (title, _), members in groups.items()),
        notes=(
            *choice_notes(choice),
            *make_notes(kept, rows, num_superseded, errors),
        ),
        choice=choice,
    )


def shown_rows(results: Sequence[CellResult], choice: Choice) -> tuple[list[CellResult], list[Row]]:
    """Return the newest results that the choice shows, and their rows. Raises as `make_report`."""
    shown = newest(results)
    pairs = [
        (result, row)
        for result, row in zip(shown, make_rows(shown, choice.baseline), strict=True)
        if all(condition.holds(row) for condition in choice.where)
    ]
    if shown and not pairs:
        raise UsageError("No row meets all conditions", "Leave one of --where out.")
    return [result for result, _ in pairs], [row for _, row in pairs]


def _section(title: str, members: Sequence[Row], choice: Choice) -> Section:
    rows = sorted_rows(members, choice.sort)
    columns = chosen_columns(choice.columns, rows) if choice.columns else columns_of(rows)
    best = best_cells(rows, [_measure_name(column) for column in columns])
    names = {_measure_name(column): column.name for column in columns}
    marks = frozenset((index, names[name]) for index, name in best)
    return Section(title, tuple(rows), columns, marks)


def _measure_name(column: Column) -> str:
    return "kld" if column.name == "kld_or_status" else column.name
