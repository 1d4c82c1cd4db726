"""The history of cells: speed and quality of one cell after the other, commit by commit.

Knows nothing about how results are stored. The law: a line joins results of one cell on one machine
only, ordered by when they were made; a bar is a 95 % interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llmopt.report.measures import MEASURES
from llmopt.report.plots.style import draw_line, legend_below, new_figure
from llmopt.report.rows import Row, machine, make_rows
from llmopt.results.schema import CellResult

_SIZE = (8.4, 2.9)  # inches of a panel
_PANELS = (
    ("throughput", "output tokens/s"),
    ("tpot", "TPOT p50, ms"),
    ("kld", "KL divergence, nats"),
)
_MAX_TICKS = 16
_MAX_LINEAR_RANGE = 20  # of values, largest / smallest
_Line = Sequence[tuple[CellResult, Row]]


def history_figure(results: Sequence[CellResult]) -> Any:
    """A panel for each measure; None where no cell was measured twice.

    `results` are all results, superseded ones among them.
    """
    lines = _lines(results)
    panels = [(name, label) for name, label in _PANELS if _is_known(lines, name)]
    if not panels:
        return None
    commits = dict(sorted(_commits(lines).items()))
    moments = list(commits)
    figure, grid = new_figure(len(panels), 1, _SIZE)
    for axes, (name, label) in zip(grid, panels, strict=True):
        for index, (title, line) in enumerate(lines.items()):
            _draw(axes, title, line, name, index, moments)
        axes.set_ylabel(label, fontsize=9)
        _scale(axes, [v for line in lines.values() for _, row in line for v in _values(row, name)])
        axes.set_xlim(-0.5, len(moments) - 0.5)
        axes.set_xticks(range(len(moments)), [""] * len(moments))
    every = -(-len(moments) // _MAX_TICKS)
    texts = [commit if i % every == 0 else "" for i, commit in enumerate(commits.values())]
    grid[-1].set_xticks(range(len(moments)), texts, rotation=40, ha="right", fontsize=8)
    handles = {each.get_label(): each for axes in grid for each in axes.containers}
    legend_below(figure, handles, 3)
    return figure


def _lines(results: Sequence[CellResult]) -> dict[str, _Line]:
    """The results of each cell that has several, oldest first, by a name for it."""
    cells: dict[tuple[str, str], list[tuple[CellResult, Row]]] = {}
    for result, row in zip(results, make_rows(results), strict=True):
        if row.status == "ok":
            cells.setdefault((result.cell_id, machine(result)), []).append((result, row))
    several = {key: line for key, line in cells.items() if len(line) > 1}
    machines = {place for _, place in several}
    return {
        cell if len(machines) == 1 else f"{cell}, {place}": sorted(
            line, key=lambda pair: pair[0].created_at
        )
        for (cell, place), line in several.items()
    }


def _values(row: Row, name: str) -> list[float]:
    estimate = MEASURES[name].of(row)
    return [] if estimate is None else [estimate.value]


def _scale(axes: Any, values: Sequence[float]) -> None:
    """Logarithmic only where a linear axis would press small values together."""
    if min(values) > 0 and max(values) > _MAX_LINEAR_RANGE * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def _is_known(lines: Mapping[str, _Line], name: str) -> bool:
    return any(MEASURES[name].of(row) is not None for line in lines.values() for _, row in line)


def _commits(lines: Mapping[str, _Line]) -> dict[str, str]:
    """What stands below the axis, by moment: the day and the commit."""
    found = {}
    for line in lines.values():
        for result, _ in line:
            sha = (result.environment.git_sha or "no git")[:7]
            changed = "+" if result.environment.git_dirty else ""
            found[result.created_at] = f"{result.created_at[:10]} {sha}{changed}"
    return found


def _draw(
    axes: Any, title: str, line: _Line, name: str, index: int, moments: Sequence[str]
) -> None:
    found = [(moments.index(r.created_at), MEASURES[name].of(row)) for r, row in line]
    known = [(x, each) for x, each in found if each is not None]
    if not known:
        return
    points = [(x, each.value, each.interval) for x, each in known]
    draw_line(axes, points, index, title)
