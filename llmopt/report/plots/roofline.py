"""The roofline: FLOP/s that a row reached, against the FLOPs it does per byte it moves.

Williams, Waterman and Patterson 2009. Knows nothing about how ceilings were measured. The law: the
roof and the points are of the same machine, and both count useful work only, as MFU and MBU do.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

from llmopt.bench.work import bytes_per_s, flops_per_s
from llmopt.report.plots.labels import FAR_PLACES, NEAR_PLACES, place_labels
from llmopt.report.plots.style import DASHES, look, new_figure
from llmopt.report.rows import Row
from llmopt.report.where import load_name
from llmopt.results.schema import Ceilings, CellResult

_SIZE = (8.2, 5.4)  # inches of a panel
_Point = tuple[Row, float, float]  # FLOPs per byte, FLOP/s


def roofline_figure(rows: Sequence[Row], results: Sequence[CellResult]) -> Any:
    """A panel for each machine and recipe whose ceilings were measured; None without any."""
    panels: dict[str, tuple[Ceilings, list[_Point]]] = {}
    for row, result in zip(rows, results, strict=True):
        point = _point(row, result)
        if point is not None and result.ceilings is not None:
            title = f"{row.recipe}: {row.backend} on {row.machine}"
            panels.setdefault(title, (result.ceilings, []))[1].append(point)
    if not panels:
        return None
    figure, grid = new_figure(len(panels), 1, _SIZE)
    targets = list(dict.fromkeys(row.target for row in rows))
    for axes, (title, (ceilings, points)) in zip(grid, panels.items(), strict=True):
        _draw_points(axes, points, targets)
        _draw_roofs(axes, ceilings, points)
        axes.set_title(title, fontsize=10)
    for axes in grid:
        place_labels(figure, axes, (*NEAR_PLACES, *FAR_PLACES))
    return figure


def _point(row: Row, result: CellResult) -> _Point | None:
    """Medians over the runs."""
    if row.status != "ok" or result.cost is None or not result.runs:
        return None
    flops = [flops_per_s(run, result.cost) for run in result.runs]
    moved = [bytes_per_s(run, result.cost) for run in result.runs]
    pairs = [(f, b) for f, b in zip(flops, moved, strict=True) if f and b]
    if not pairs:
        return None
    return row, median(f / b for f, b in pairs), median(f for f, _ in pairs)


def _draw_points(axes: Any, points: Sequence[_Point], targets: Sequence[str]) -> None:
    for row, intensity, rate in points:
        axes.errorbar(
            intensity,
            rate / 1e9,
            yerr=0,
            **look(targets.index(row.target)),
            markersize=6.5,
            linestyle="none",
            label=f"{row.target} {load_name(row)}",
        )


def _draw_roofs(axes: Any, ceilings: Ceilings, points: Sequence[_Point]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    rates = [rate / 1e9 for _, _, rate in points]
    read = ceilings.read_bytes_per_s / 1e9
    peaks = sorted(ceilings.gemm_flops.items(), key=lambda item: -item[1])
    ridge = max((flops / 1e9 / read for _, flops in peaks), default=1.0)
    left = min(intensity for _, intensity, _ in points) / 3
    right = 4 * max(ridge, *(intensity for _, intensity, _ in points))
    for number, (dtype, flops) in enumerate(peaks):
        corner = flops / 1e9 / read
        label = f"{flops / 1e9:.3g} GFLOP/s in {dtype}"
        style = {"color": "#444444", "linestyle": DASHES[number], "linewidth": 1.1}
        axes.plot([corner, right], [flops / 1e9] * 2, **style, zorder=1)
        axes.annotate(
            label,
            (right, flops / 1e9),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#444444",
        )
    top = max((flops / 1e9 for _, flops in peaks), default=read * right)
    axes.plot([left, top / read], [left * read, top], color="#444444", linewidth=1.1, zorder=1)
    axes.annotate(
        f"{read:.3g} GB/s",
        (left, left * read),
        xytext=(14, 3),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color="#444444",
    )
    axes.set_xlim(left, right)
    axes.set_ylim(min(*rates, left * read) / 2, 2 * top)
    axes.set_xlabel("useful FLOPs per byte moved")
    axes.set_ylabel("useful GFLOP/s")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
