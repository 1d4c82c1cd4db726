"""The report as one HTML page that needs nothing else: tables, pictures, where it all came from.

Knows nothing about how anything was measured. The law: whatever a result file contains is shown and
never becomes markup; the page asks the network for nothing, and may run no script but its own.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from llmopt.report.columns import Column
from llmopt.report.markdown import joined_header
from llmopt.report.measures import MEASURES
from llmopt.report.origin import make_origin
from llmopt.report.plots.catalogue import Material, drawn_pictures
from llmopt.report.plots.style import svg_element
from llmopt.report.report import Report, Section, shown_rows
from llmopt.report.rows import Row
from llmopt.results.kernels import KernelResult
from llmopt.results.schema import CellResult

_TEMPLATE = "report_page.html"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text of the table; `key` is what it is sorted by: a number, a text, or "" if unknown."""

    text: str
    key: str
    is_number: bool
    is_best: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table, and why it cannot be trusted if so."""

    cells: tuple[Cell, ...]
    status: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture as an SVG element."""

    name: str
    title: str
    svg: Markup


def to_html(
    report: Report, results: Sequence[CellResult], kernels: Sequence[KernelResult] = ()
) -> str:
    """The page, as HTML text. `results` are all that the report was made of."""
    source = resources.files("llmopt.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    shown, rows = shown_rows(results, report.choice)
    return environment.from_string(source).render(
        script_hash=_script_hash(source),
        tables=[
            (section.title, [_head(c) for c in section.columns], list(_lines(section)))
            for section in report.sections
        ],
        notes=[*report.notes, *report.mark_notes],
        drawings=list(_drawings(Material(report, results, kernels))),
        checked=[(result, row) for result, row in zip(shown, rows, strict=True) if row.load],
        origin=make_origin(shown),
    )


def _head(column: Column) -> tuple[str, bool]:
    return joined_header(column.header), column.is_number


def _lines(section: Section) -> Iterator[Line]:
    for index, row in enumerate(section.rows):
        cells = tuple(
            Cell(
                text=column.text(row),
                key=_key(column, row),
                is_number=column.is_number,
                is_best=section.is_best(index, column),
            )
            for column in section.columns
        )
        yield Line(cells, row.status, row.reason)


def _key(column: Column, row: Row) -> str:
    measure = MEASURES.get(column.name.removesuffix("_or_status"))
    if measure is None:
        return column.text(row)
    estimate = measure.of(row)
    return "" if estimate is None else repr(estimate.value)


def _drawings(material: Material) -> Iterator[Drawing]:
    for name, title, figure in drawn_pictures(material):
        # text in matplotlib's SVG is drawn as paths, and what remains of it is escaped
        yield Drawing(name, title, Markup(svg_element(figure, name)))


def _script_hash(source: str) -> str:
    """The hash by which the page's policy allows its script, and no other."""
    script = source.partition("<script>")[2].partition("</script>")[0]
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
