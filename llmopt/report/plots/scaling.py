"""Throughput and latencies against concurrency, or against the rate of requests.

Knows nothing about how they were measured. The law: only loads of one kind and of the same lengths
share a line, and a bar is a 95 % interval.
"""

from collections.abc import Sequence
from typing import Any

from llmopt.report.measures import MEASURES
from llmopt.report.plots.style import draw_line, legend_below, new_figure
from llmopt.report.report import Report
from llmopt.report.rows import Row

_SIZE = (4.3, 3.6)  # inches of a panel
_DODGE = 0.04  # octaves between targets, so that their bars do not hide each other
_PANELS = (
    ("throughput", "output tokens per second"),
    ("ttft_p95", "TTFT p95, ms"),
    ("tpot", "TPOT p50, ms"),
)

_Series = dict[str, list[tuple[float, Row]]]  # by target


def scaling_figure(report: Report) -> Any:
    """A line of panels for each section and shape of request; None where no load is varied."""
    groups = {title: series for title, series in _groups(report).items() if _is_varied(series)}
    if not groups:
        return None
    figure, grid = new_figure(len(_PANELS) * len(groups), len(_PANELS), _SIZE)
    targets = list(dict.fromkeys(row.target for row in report.rows))
    for number, (title, series) in enumerate(groups.items()):
        cells = grid[number * len(_PANELS) : (number + 1) * len(_PANELS)]
        for axes, (name, label) in zip(cells, _PANELS, strict=True):
            _draw(axes, series, name, targets)
            axes.set_ylabel(label)
        cells[0].set_title(title, fontsize=9, loc="left")
    handles = {line.get_label(): line for axes in grid for line in axes.containers}
    legend_below(figure, handles, 5)
    return figure


def _groups(report: Report) -> dict[str, _Series]:
    groups: dict[str, _Series] = {}
    for section in report.sections:
        for row in section.rows:
            load = row.load
            if load is None or row.speed is None:
                continue
            x = float(load.concurrency) if load.kind == "closed" else load.rate
            if not x:  # 0: a concurrency that is not known
                continue
            kind = "closed loop" if load.kind == "closed" else f"{load.kind} arrivals"
            lengths = f"{load.prompt_tokens} prompt + {load.output_tokens} output tokens"
            series = groups.setdefault(f"{section.title}\n{kind}, {lengths}", {})
            series.setdefault(row.target, []).append((x, row))
    return groups


def _is_varied(series: _Series) -> bool:
    return any(len({x for x, _ in points}) > 1 for points in series.values())


def _draw(axes: Any, series: _Series, name: str, targets: Sequence[str]) -> None:
    is_closed = False
    for target, points in series.items():
        index = targets.index(target)
        found = [(x, MEASURES[name].of(row)) for x, row in sorted(points, key=lambda p: p[0])]
        known = [(x, each) for x, each in found if each is not None]
        is_closed = is_closed or any(r.load and r.load.kind == "closed" for _, r in points)
        if not known:
            continue
        dodge = 2 ** (_DODGE * (index - len(targets) / 2)) if is_closed else 1.0
        points_seen = [(x * dodge, each.value, each.interval) for x, each in known]
        draw_line(axes, points_seen, index, target)
    values = sorted({x for points in series.values() for x, _ in points})
    if is_closed:
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.set_xlabel("requests in flight" if is_closed else "requests per second")
    axes.set_ylim(bottom=0)
