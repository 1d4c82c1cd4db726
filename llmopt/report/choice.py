"""What a reader wants to see of the results: which rows, beside which, in what order.

Knows nothing about layout. The law: a choice hides and orders rows; it never changes a number but
the ratios to the baseline that it names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llmopt.errors import UsageError
from llmopt.report.columns import COLUMNS
from llmopt.report.measures import MEASURES
from llmopt.report.rows import Row
from llmopt.report.where import Condition, load_name

GroupBy = Literal["target", "load", "backend"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Names of columns and groups; `sort` is a column, best first, or "-column", worst first.

    `baseline` is what speed-ups are against, as `read_baseline` takes it; None: the base of the
    recipe.
    """

    columns: tuple[str, ...] = ()
    group_by: GroupBy | None = None
    where: tuple[Condition, ...] = ()
    sort: str | None = None
    baseline: str | None = None


EVERYTHING = Choice()
_TITLES: Mapping[GroupBy, Callable[[Row], str]] = MappingProxyType(
    {
        "target": lambda row: row.target,
        "load": lambda row: "quality" if row.load is None else f"load {load_name(row)}",
        "backend": lambda row: row.backend,
    }
)


def choice_notes(choice: Choice) -> Iterator[str]:
    """Say what is hidden, and what speed-ups are against."""
    if choice.where:
        shown = " and ".join(f"{each.name}{each.sign}{each.text}" for each in choice.where)
        yield f"Only rows with {shown} are shown."
    if choice.baseline is not None:
        yield f"Here the speed-up is against {choice.baseline}, not the base of the recipe."


def section_title(row: Row, group_by: GroupBy | None) -> str:
    """The title of the section that a row stands in."""
    if group_by is None:
        return f"{row.recipe}: {row.backend} on {row.machine}"
    return f"{_TITLES[group_by](row)} on {row.machine}"


def sorted_rows(rows: Sequence[Row], sort: str | None) -> list[Row]:
    """Rows by a measure, best (or lowest) first, or by a text; unknown ones last.

    Raises UsageError for a name that is neither.
    """
    if sort is None:
        return list(rows)
    name = sort.removeprefix("-")
    known, unknown = _keyed(rows, name)
    known.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
    return [*(row for _, row in known), *unknown]


def _keyed(rows: Sequence[Row], name: str) -> tuple[list[tuple[float | str, Row]], list[Row]]:
    if name not in MEASURES:
        column = COLUMNS.get(name)
        if column is None or column.is_number:
            raise UsageError(f"Rows cannot be sorted by {name!r}", f"Known: {', '.join(MEASURES)}.")
        return [(column.text(row), row) for row in rows], []
    measure = MEASURES[name]
    sign = -1 if measure.better == "higher" else 1
    known: list[tuple[float | str, Row]] = []
    unknown = []
    for row in rows:
        estimate = measure.of(row)
        if estimate is None:
            unknown.append(row)
        else:
            known.append((sign * estimate.value, row))
    return known, unknown
