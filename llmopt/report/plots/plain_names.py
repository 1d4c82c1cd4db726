"""Names as matplotlib should draw them: as they are.

Knows nothing about pictures. The law: a dollar sign in a name is a dollar sign, and never begins a
formula, which may be malformed.
"""

from collections.abc import Sequence
from dataclasses import replace

from llmopt.report.report import Report
from llmopt.results.schema import CellResult


def plain_report(report: Report) -> Report:
    """The report with escaped names in titles and rows."""
    sections = tuple(
        replace(
            section,
            title=_plain(section.title),
            rows=tuple(
                replace(row, target=_plain(row.target), recipe=_plain(row.recipe))
                for row in section.rows
            ),
        )
        for section in report.sections
    )
    return replace(report, sections=sections)


def plain_results(results: Sequence[CellResult]) -> list[CellResult]:
    """The results with escaped names; a name is escaped wherever it is used."""
    return [
        replace(
            result,
            cell_id=_plain(result.cell_id),
            target=_plain(result.target),
            base_target=_plain(result.base_target),
            recipe_name=_plain(result.recipe_name),
            backend=replace(
                result.backend,
                name=_plain(result.backend.name),
                version=_plain(result.backend.version),
            ),
            environment=replace(result.environment, device=_plain(result.environment.device)),
        )
        for result in results
    ]


def _plain(name: str) -> str:
    return name.replace("$", r"\$")
