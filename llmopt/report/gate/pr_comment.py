"""The verdict as Markdown: a comment on a pull request, and the summary of a CI step.

Knows nothing about where it is shown. The law: whatever is in a name or a reason, it cannot break
the table, and the first line is the verdict. The marker in it lets a script find its own comment
again.
"""

from collections.abc import Iterator

from llmopt.report.gate.verdict import GateReport
from llmopt.report.gate.wording import (
    change_text,
    headline,
    reason_text,
    tolerance_text,
    value_text,
)

MARKER = "<!-- llmopt gate -->"

_SIGNS = {"PASS": "✅", "REGRESSED": "❌", "INCONCLUSIVE": "❔"}


def to_markdown(report: GateReport) -> str:
    """Return the whole comment."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: GateReport) -> Iterator[str]:
    yield f"### {_SIGNS[report.verdict]} llmopt gate: {_escape(headline(report))} {MARKER}"
    yield ""
    yield "| Cell | Metric | Before | After | Change [90 %] | Allowed | Verdict |"
    yield "|---|---|---:|---:|---:|---:|---|"
    for row in report.rows:
        cells = (
            row.cell_id,
            row.metric,
            value_text(row.before),
            value_text(row.after),
            change_text(row),
            tolerance_text(row),
            f"{_SIGNS[row.verdict]} {row.verdict}",
        )
        yield f"| {' | '.join(map(_escape, cells))} |"
    yield ""
    for row in report.rows:
        if row.verdict != "PASS":
            yield f"* {_escape(f'{row.cell_id} {row.metric}: {reason_text(row)}')}"
    for note in report.notes:
        yield f"* {_escape(note)}"


def _escape(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    text = " ".join(text.split())
    for sign, replacement in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, replacement)
    for sign in "\\`*_[]|~#":
        text = text.replace(sign, f"\\{sign}")
    return text
