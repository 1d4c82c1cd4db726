"""The report as Markdown: one table a section, notes as a list.

Knows nothing about where the numbers come from. The law: whatever is in a name or a reason, it
cannot break the table.
"""

from collections.abc import Iterable

from llmopt.report.report import Report, Section


def to_markdown(report: Report) -> str:
    """Return the tables and notes as Markdown."""
    parts = [_section(section) for section in report.sections]
    notes = [*report.notes, *report.mark_notes]
    if notes:
        parts.append("\n".join(f"* {_escape(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    columns = section.columns
    lines = [
        f"**{_escape(section.title)}**",
        "",
        _line(joined_header(column.header) for column in columns),
        _line("---:" if column.is_number else "---" for column in columns),
    ]
    for index, row in enumerate(section.rows):
        cells = ((_escape(column.text(row)), section.is_best(index, column)) for column in columns)
        lines.append(_line(f"**{text}**" if is_best else text for text, is_best in cells))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def joined_header(text: str) -> str:
    """Join the lines of a header: with a space, or without where a word was broken."""
    return text.replace("\n-", "-").replace("/\n", "/").replace("\n", " ")
