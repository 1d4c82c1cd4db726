"""One picture: what was lost (KLD) against what was gained: output throughput, or size.

Knows nothing about how either was measured; imports matplotlib only when it draws. The law: a
target has the same colour and marker in every panel and its name beside it, so that the picture
also reads in grey and to the colour-blind (palette of Okabe and Ito).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt.report.labels import place_labels
from llmopt.report.report import Report
from llmopt.report.rows import Row
from llmopt.report.scheme_plot import has_kld, look, scheme_figure
from llmopt.results.files import make_directory, output_error

_MAX_LINEAR_RANGE = 20  # of KLDs, largest / smallest; above it the axis is logarithmic
_MAX_PANELS_ACROSS = 3

Panel = tuple[str, list[Row]]  # title, rows that have a speed


def write_plot(report: Report, path: str | Path) -> Path | None:
    """Draw the report to a PNG and return its path; None if no row can be drawn.

    Where rows have both quality and speed, one panel per load of each section; error bars are the
    confidence interval of the KLD and the range of the runs' throughput; the base is a vertical
    line. Otherwise the quality of the schemes against their bits. Raises OutputError.
    """
    path = Path(path)
    figure = make_figure(report)
    if figure is None:
        return None
    make_directory(path.parent)
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise output_error(path, error) from error
    return path


def make_figure(report: Report) -> Any:
    """Return the picture as a matplotlib Figure; None if no row can be drawn."""
    panels = _panels(report)
    return _figure(panels, report) if panels else scheme_figure(report)


def _panels(report: Report) -> list[Panel]:
    panels: dict[str, list[Row]] = {}
    for section in report.sections:
        for row in section.rows:
            load = row.load
            if load is None or row.speed is None or not (row.is_base or has_kld(row)):
                continue
            lengths = f"{load.prompt_tokens} prompt + {load.output_tokens} output tokens"
            title = f"concurrency {load.concurrency}: {lengths}"
            if len(report.sections) > 1:
                title = f"{section.title}\n{title}"
            panels.setdefault(title, []).append(row)
    return [(title, rows) for title, rows in panels.items() if any(not row.is_base for row in rows)]


def _figure(panels: Sequence[Panel], report: Report) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(len(panels), _MAX_PANELS_ACROSS)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.2 + 4.6 * across, 0.6 + 3.8 * down), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    targets = list(dict.fromkeys(row.target for row in report.rows if not row.is_base))
    scale = _y_scale([row for _, rows in panels for row in rows])
    for axes, (title, rows) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, title, rows, targets, scale)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("KL divergence from the base\n(nats per token; lower is better)")
    if len(report.sections) == 1:
        figure.suptitle(report.sections[0].title, fontsize=10)
    figure.supxlabel(
        "bars: confidence interval of the mean KL divergence; range of the runs' throughput",
        fontsize=8,
        color="#444444",
    )
    for axes in grid.flat[: len(panels)]:
        place_labels(figure, axes)
    return figure


def _y_scale(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the arguments of `set_yscale`: logarithmic only where a linear axis hides rows."""
    klds = [row.quality.kld_mean for row in rows if row.quality and not row.is_base]
    positive = [kld for kld in klds if kld > 0]
    if not positive or max(positive) <= _MAX_LINEAR_RANGE * min(positive):
        return {"value": "linear"}
    if len(positive) < len(klds):  # an exact 0 has no logarithm
        return {"value": "symlog", "linthresh": min(positive)}
    return {"value": "log"}


def _draw_panel(
    axes: Any, title: str, rows: Sequence[Row], targets: Sequence[str], scale: dict[str, Any]
) -> None:
    axes.set_yscale(**scale)
    for row in rows:
        if row.is_base:
            _draw_base(axes, row)
        else:
            _draw_target(axes, row, targets.index(row.target))
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("output tokens per second (higher is better)")
    fastest = max(row.speed.output_throughput_max for row in rows if row.speed)
    axes.set_xlim(0, 1.15 * fastest)
    axes.margins(y=0.15)
    if scale["value"] == "linear":
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_target(axes: Any, row: Row, index: int) -> None:
    assert row.speed is not None, "_panels keeps rows with a speed only"
    assert row.quality is not None, "_panels keeps rows with a quality only"
    speed, quality = row.speed, row.quality
    low, high = quality.kld_mean_ci
    center, kld = speed.output_throughput, quality.kld_mean
    axes.errorbar(
        center,
        kld,
        xerr=[[center - speed.output_throughput_min], [speed.output_throughput_max - center]],
        yerr=[[max(kld - low, 0)], [max(high - kld, 0)]],
        **look(index),
        markersize=7,
        elinewidth=1.2,
        capsize=2.5,
        linestyle="none",
        label=row.target,
    )


def _draw_base(axes: Any, row: Row) -> None:
    assert row.speed is not None, "_panels keeps rows with a speed only"
    axes.axvline(row.speed.output_throughput, color="#666666", linestyle="--", linewidth=1)
    axes.annotate(
        f"{row.target} (base)",
        (row.speed.output_throughput, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3, -3),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=8,
        color="#444444",
    )
