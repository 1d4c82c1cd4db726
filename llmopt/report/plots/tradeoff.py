"""What was lost (KL divergence) against what was gained: output throughput, or size.

Knows nothing about how either was measured; imports matplotlib only when it draws. The law: a
target has the same colour and marker in every panel and its name beside it; a box is the product
of two intervals; the line is the Pareto front of the points, which says nothing about intervals.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.report.measures import MEASURES, Estimate
from llmopt.report.plots.labels import FAR_PLACES, NEAR_PLACES, place_labels
from llmopt.report.plots.schemes import has_kld
from llmopt.report.plots.style import look, new_figure
from llmopt.report.report import Report, Section
from llmopt.report.rows import Row
from llmopt.report.where import load_name
from llmopt.results.schema import Interval

_MAX_LINEAR_RANGE = 20  # of KLDs, largest / smallest; above it the axis is logarithmic
_MAX_PANELS_ACROSS = 3
_SIZE = (4.9, 4.0)  # inches of a panel
_CROWD = 8  # more points need a large panel
_CROWD_SIZE = (9.5, 6.5)
_Y_LABEL = "KL divergence from the base\n(nats per token; lower is better)"


@dataclass(frozen=True, slots=True)
class Point:
    """A target: what it costs (y, the KLD) and what it is for (x), with intervals.

    label: the target, and the runtime where a panel has several
    """

    target: str
    label: str
    x: float
    x_ends: Interval
    y: float
    y_ends: Interval


@dataclass(frozen=True, slots=True)
class Panel:
    """Points under one title; `bases`: label and x of each runtime's base, which has no loss."""

    title: str
    points: tuple[Point, ...]
    bases: tuple[tuple[str, float], ...]


def throughput_figure(report: Report) -> Any:
    """Quality against throughput, a panel for each load of each section; None without points."""
    panels = [
        panel
        for section in report.sections
        for panel in _load_panels(section, len(report.sections) > 1)
    ]
    names = ("output tokens per second (higher is better)", "of the throughput")
    return _figure(report, panels, *names, higher=True) if panels else None


def size_figure(report: Report) -> Any:
    """Quality against the bytes of the weight files, a panel for each section; None without."""
    panels = [panel for section in report.sections if (panel := _size_panel(section)) is not None]
    names = ("weight files, MB (lower is better)", "")
    return _figure(report, panels, *names, higher=False) if panels else None


def pareto_front(points: Sequence[Point], *, higher: bool) -> list[Point]:
    """The points that no other one beats in both, by rising x; `higher`: large x are good."""
    sign = -1 if higher else 1
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (sign * each.x, each.y)):
        if not front or point.y < front[-1].y:
            front.append(point)
    return sorted(front, key=lambda each: each.x)


def _load_panels(section: Section, is_titled: bool) -> Iterator[Panel]:
    by_load: dict[str, list[Row]] = {}
    for row in section.rows:
        load = row.load
        if load is None or row.speed is None or not (row.is_base or has_kld(row)):
            continue
        unit = "concurrency " + str(load.concurrency) if load.kind == "closed" else load_name(row)
        title = f"{unit}: {load.prompt_tokens} prompt + {load.output_tokens} output tokens"
        by_load.setdefault(f"{section.title}\n{title}" if is_titled else title, []).append(row)
    for title, rows in by_load.items():
        panel = _panel(title, rows, "throughput")
        if panel is not None:
            yield panel


def _size_panel(section: Section) -> Panel | None:
    rows = {row.target: row for row in section.rows if row.is_base or has_kld(row)}
    return _panel(section.title, list(rows.values()), "size")


def _panel(title: str, rows: Sequence[Row], name: str) -> Panel | None:
    points, bases = [], []
    has_several = len({_runtime(row) for row in rows}) > 1
    for row in rows:
        found = MEASURES[name].of(row)
        if found is None:
            continue
        label = f"{row.target} on {_runtime(row)}" if has_several else row.target
        if row.is_base:
            bases.append((label, found.value))
        elif row.quality is not None:
            ends = _ends(found, row)
            kld = row.quality.kld_mean
            kld_ends = row.quality.kld_mean_ci
            points.append(Point(row.target, label, found.value, ends, kld, kld_ends))
    return Panel(title, tuple(points), tuple(bases)) if points else None


def _runtime(row: Row) -> str:
    return row.backend.partition(" ")[0]


def _ends(found: Estimate, row: Row) -> Interval:
    """The interval; of fewer than three runs their range."""
    if found.interval is not None or found.is_exact or row.speed is None:
        return found.interval or (found.value, found.value)
    return row.speed.output_throughput_min, row.speed.output_throughput_max


def _figure(
    report: Report, panels: Sequence[Panel], x_label: str, x_bars: str, *, higher: bool
) -> Any:
    is_crowded = max(len(panel.points) for panel in panels) > _CROWD
    across, size = (1, _CROWD_SIZE) if is_crowded else (_MAX_PANELS_ACROSS, _SIZE)
    figure, grid = new_figure(len(panels), across, size, sharey=True)
    targets = list(dict.fromkeys(row.target for row in report.rows if not row.is_base))
    scale = _y_scale([point.y for panel in panels for point in panel.points])
    for axes, panel in zip(grid, panels, strict=True):
        _draw_panel(axes, panel, targets, scale)
        _draw_front(axes, pareto_front(panel.points, higher=higher), higher=higher)
        axes.set_xlabel(x_label)
    for axes in grid[:: min(len(panels), across)]:
        axes.set_ylabel(_Y_LABEL)
    if len(report.sections) == 1 and panels[0].title != report.sections[0].title:
        figure.suptitle(report.sections[0].title, fontsize=10)
    bars = "boxes: 95 % intervals of the mean KL divergence" + (f" and {x_bars}" if x_bars else "")
    figure.supxlabel(f"{bars}; line: Pareto front", fontsize=8, color="#444444")
    for axes, panel in zip(grid, panels, strict=True):
        if is_crowded and not higher:
            axes.set_xlim(*_span([point.x for point in panel.points]))
        crowd = FAR_PLACES if len(panel.points) > _CROWD else ()
        place_labels(figure, axes, (*NEAR_PLACES, *crowd))
    return figure


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Limits that leave room for labels at both sides."""
    room = 0.25 * (max(values) - min(values)) or 0.5 * max(values)
    return min(values) - room, max(values) + room


def _y_scale(klds: Sequence[float]) -> dict[str, Any]:
    """Return the arguments of `set_yscale`: logarithmic only where a linear axis hides rows."""
    positive = [kld for kld in klds if kld > 0]
    if not positive or max(positive) <= _MAX_LINEAR_RANGE * min(positive):
        return {"value": "linear"}
    if len(positive) < len(klds):  # an exact 0 has no logarithm
        return {"value": "symlog", "linthresh": min(positive)}
    return {"value": "log"}


def _draw_panel(axes: Any, panel: Panel, targets: Sequence[str], scale: dict[str, Any]) -> None:
    axes.set_yscale(**scale)
    for point in panel.points:
        _draw_point(axes, point, look(targets.index(point.target)))
    for base in panel.bases:
        _draw_base(axes, *base)
    axes.set_title(panel.title, fontsize=9, wrap=True)
    ends = [*(point.x_ends[1] for point in panel.points), *(x for _, x in panel.bases)]
    axes.set_xlim(0, 1.15 * max(ends))
    axes.margins(y=0.15)
    if scale["value"] == "linear":
        axes.set_ylim(bottom=0)


def _draw_point(axes: Any, point: Point, style: dict[str, str]) -> None:
    from matplotlib.patches import Rectangle

    (left, right), (low, high) = point.x_ends, point.y_ends
    left = max(left, 0.0)
    box = Rectangle(
        (left, low),
        right - left,
        high - low,
        facecolor=style["color"],
        edgecolor=style["color"],
        alpha=0.18,
        linewidth=0.8,
    )
    axes.add_patch(box)
    axes.errorbar(
        point.x,
        point.y,
        xerr=[[max(point.x - left, 0)], [max(right - point.x, 0)]],
        yerr=[[max(point.y - low, 0)], [max(high - point.y, 0)]],
        **style,
        markersize=7,
        elinewidth=0.8,
        capsize=0,
        linestyle="none",
        label=point.label,
    )


def _draw_front(axes: Any, front: Sequence[Point], *, higher: bool) -> None:
    """Steps: what is on the bad side of the line is beaten in both."""
    if len(front) < 2:
        return
    axes.step(
        [point.x for point in front],
        [point.y for point in front],
        where="pre" if higher else "post",
        color="#555555",
        linewidth=0.9,
        linestyle=":",
        zorder=1,
    )


def _draw_base(axes: Any, name: str, x: float) -> None:
    axes.axvline(x, color="#666666", linestyle="--", linewidth=1)
    label = axes.annotate(
        f"{name} (base)",
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3, -3),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=8,
        color="#444444",
        annotation_clip=True,
    )
    label.set_in_layout(False)
