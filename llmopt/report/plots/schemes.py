"""The picture of a quality-only report: KL divergence against the bits of the linear layers.

Knows nothing about how either was measured; imports matplotlib only when it draws. The law: schemes
of one method share colour and marker, a quantizer of others is hollow, and every point has its name
beside it.
"""

import math
from collections.abc import Sequence
from typing import Any

from llmopt.report.columns import OWN_ENGINE
from llmopt.report.plots.labels import FAR_PLACES, NEAR_PLACES, place_labels
from llmopt.report.plots.style import look, new_figure
from llmopt.report.report import Report, Section
from llmopt.report.rows import Row

_SIZE = (9.5, 6.5)  # inches of a panel


def has_kld(row: Row) -> bool:
    """Whether a row has a KL divergence that can be drawn."""
    return row.quality is not None and math.isfinite(row.quality.kld_mean)


def scheme_figure(report: Report) -> Any:
    """Return the matplotlib Figure, a panel for each section; None if no scheme can be drawn."""
    panels = [(section, rows) for section in report.sections if (rows := _drawn(section))]
    if not panels:
        return None
    figure, grid = new_figure(len(panels), 1, _SIZE)
    for axes, (section, rows) in zip(grid, panels, strict=True):
        _draw_panel(axes, section.title, rows)
    for axes in grid:
        place_labels(figure, axes, (*NEAR_PLACES, *FAR_PLACES))
    return figure


def _drawn(section: Section) -> list[Row]:
    """The rows of a quality-only section that are quantized and lost something."""
    return [
        row
        for row in section.rows
        if row.load is None
        and row.model is not None
        and row.model.linear_bits_per_weight is not None
        and row.quality is not None
        and has_kld(row)
        and row.quality.kld_mean > 0
    ]


def _draw_panel(axes: Any, title: str, rows: Sequence[Row]) -> None:
    methods = list(dict.fromkeys(map(_method, rows)))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    for row in rows:
        _draw(axes, row, look(methods.index(_method(row))))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("stored bits per weight of the linear layers (fewer is better)")
    axes.set_ylabel(
        "KL divergence from the base, nats per token (lower is better)\n"
        "bars: confidence interval of the mean"
    )
    axes.margins(x=0.12, y=0.08)
    axes.grid(alpha=0.25, linewidth=0.6, which="both")


def _draw(axes: Any, row: Row, style: dict[str, str]) -> None:
    assert row.model is not None, "rows without a model are not drawn"
    assert row.quality is not None, "rows without a quality are not drawn"
    kld, (low, high) = row.quality.kld_mean, row.quality.kld_mean_ci
    own = row.quantization is None or row.quantization.engine == OWN_ENGINE
    axes.errorbar(
        row.model.linear_bits_per_weight,
        kld,
        yerr=[[max(kld - low, 0)], [max(high - kld, 0)]],
        **style,
        markerfacecolor=style["color"] if own else "none",
        markersize=6,
        elinewidth=1.1,
        capsize=2,
        linestyle="none",
        label=row.target,
    )


def _method(row: Row) -> str:
    """The part of a scheme's name before its numbers: "gptq", "awq+gptq", "gguf", "nf4"."""
    assert row.model is not None, "rows without a model are not drawn"
    return row.model.scheme.partition("-")[0]
