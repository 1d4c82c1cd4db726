"""The report as Markdown: one table a section, notes as a list.

Knows nothing about where the numbers come from. The law: whatever is in a name or a reason, it
cannot break the table.
"""

from collections.abc import Iterable

from llmopt.report.columns import columns_of
from llmopt.report.report import Report, Section


def to_markdown(report: Report) -> str:
    """Return the tables and notes as Markdown."""
    parts = [_section(section) for section in report.sections]
    if report.notes:
        parts.append("\n".join(f"* {_escape(note)}" for note in report.notes))
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    columns = columns_of(section.rows)
    lines = [
        f"**{_escape(section.title)}**",
        "",
        _line(_header(column.header) for column in columns),
        _line("---:" if column.is_number else "---" for column in columns),
    ]
    lines += [_line(_escape(column.text(row)) for column in columns) for row in section.rows]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _header(text: str) -> str:
    """Join the lines of a header: with a space, or without where a word was broken."""
    return text.replace("\n-", "-").replace("/\n", "/").replace("\n", " ")
