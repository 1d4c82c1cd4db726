"""Distributions of latencies: the share of requests that were served within a time (ECDF).

Knows nothing about how they were measured. The law: every request of every run is in the curve; one
that failed or never came to the point is in the denominator, so that a curve may end below 1.
"""

from collections.abc import Sequence
from typing import Any

from llmopt.bench.latencies import e2e_s, tpot_s, ttft_s
from llmopt.report.plots.style import COLORS, dashes, legend_below, new_figure
from llmopt.report.rows import Row
from llmopt.report.where import load_name
from llmopt.results.schema import CellResult

_SIZE = (4.3, 3.2)  # inches of a panel
_METRICS = (("TTFT", ttft_s), ("TPOT", tpot_s), ("end to end", e2e_s))
_MAX_LINEAR_RANGE = 20  # of latencies, largest / smallest
_MAX_LOADS = 4

_Cells = list[tuple[Row, CellResult]]


def distribution_figure(rows: Sequence[Row], results: Sequence[CellResult]) -> Any:
    """A line of panels for each load, a panel for each latency; None without raw events.

    `results` are those of the rows. Of more than four loads the four with the most requests in
    flight, or the highest rates, are shown.
    """
    groups: dict[str, _Cells] = {}
    for row, result in zip(rows, results, strict=True):
        if row.status == "ok" and any(run.requests for run in result.runs):
            title = f"{row.recipe}: {row.backend}, {load_name(row)}"
            groups.setdefault(title, []).append((row, result))
    if not groups:
        return None
    shown = list(groups.items())[-_MAX_LOADS:]
    figure, grid = new_figure(len(shown) * len(_METRICS), len(_METRICS), _SIZE, sharey=True)
    targets = list(dict.fromkeys(row.target for row in rows))
    lines: dict[str, Any] = {}
    for number, (title, cells) in enumerate(shown):
        line_of_panels = grid[number * len(_METRICS) : (number + 1) * len(_METRICS)]
        for axes, (name, latency) in zip(line_of_panels, _METRICS, strict=True):
            lines |= _draw(axes, cells, latency, targets)
            axes.set_xlabel(f"{name}, ms")
        line_of_panels[0].set_ylabel("share of requests")
        line_of_panels[0].set_title(title, fontsize=9, loc="left")
    legend_below(figure, lines, 5)
    return figure


def _draw(axes: Any, cells: _Cells, latency: Any, targets: Sequence[str]) -> dict[str, Any]:
    lines, seen = {}, []
    for row, result in cells:
        requests = [request for run in result.runs for request in run.requests]
        found = (None if r.error is not None else latency(r) for r in requests)
        values = sorted(1000 * value for value in found if value is not None)
        if not values:
            continue
        index = targets.index(row.target)
        shares = [number / len(requests) for number in range(len(values) + 1)]
        (line,) = axes.step(
            [values[0], *values],
            shares,
            where="post",
            color=COLORS[index % len(COLORS)],
            linestyle=dashes(index),
            linewidth=1.4,
        )
        lines[row.target] = line
        seen += [values[0], values[-1]]
    if seen and min(seen) > 0 and max(seen) > _MAX_LINEAR_RANGE * min(seen):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    return lines
