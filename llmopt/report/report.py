"""A report: rows in comparable sections, and notes. What every renderer is given.

Knows nothing about formats. The law: rows that were measured on different machines, with different
backends or from different recipes never stand in one section, nor do speed and quality only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.errors import ResultError
from llmopt.report.notes import make_notes
from llmopt.report.rows import Row, make_rows, newest
from llmopt.results.schema import CellResult


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that may be compared with each other."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says: sections of rows, and the notes under them."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all sections."""
        return tuple(row for section in self.sections for row in section.rows)


def make_report(results: Sequence[CellResult], errors: Sequence[ResultError] = ()) -> Report:
    """Return the report of these results; `errors` are the files that could not be read."""
    shown = newest(results)
    rows = make_rows(shown)
    sections: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        title = f"{row.recipe}: {row.backend} on {row.machine}"
        sections.setdefault((title, row.load is None), []).append(row)
    return Report(
        sections=tuple(Section(title, tuple(members)) for (title, _), members in sections.items()),
        notes=tuple(make_notes(shown, rows, len(results) - len(shown), errors)),
    )
