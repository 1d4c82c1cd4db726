"""Where the time of each row went: stacked bars, as long as a token takes.

Knows nothing about how times were measured. The law: the parts of a bar sum to its length, and a
part has the same colour and hatch in every bar.
"""

from collections.abc import Sequence
from typing import Any

from llmopt.report.attribution import AttributedRow, attributed
from llmopt.report.plots.style import COLORS, HATCHES, legend_below, new_figure
from llmopt.report.rows import Row
from llmopt.report.where import load_name
from llmopt.results.attribution import PartName
from llmopt.results.schema import CellResult

_PARTS: tuple[tuple[str, tuple[PartName, ...]], ...] = (
    ("weights (roofline)", ("weights",)),
    ("matmul (roofline)", ("matmul",)),
    ("KV and attention (roofline)", ("kv", "attention")),
    ("lm_head (roofline)", ("lm_head",)),
    ("above the roofline", ("operators",)),
    ("sampling", ("sampling",)),
    ("host", ("drafting", "scheduling", "update")),
    ("client and idle", ("client", "idle")),
    ("rest", ("unattributed",)),
)
_WIDTH = 8.6  # inches
_BAR = 0.34  # inches of height


def time_figure(rows: Sequence[Row], results: Sequence[CellResult]) -> Any:
    """A panel for each load, a bar for each target; None where nothing was counted."""
    groups: dict[str, list[AttributedRow]] = {}
    for each in attributed(results, rows):
        if each.ms_per_token is not None:
            title = f"{each.row.recipe}: {each.row.backend}, {load_name(each.row)}"
            groups.setdefault(title, []).append(each)
    if not groups:
        return None
    tallest = max(map(len, groups.values()))
    figure, grid = new_figure(len(groups), 1, (_WIDTH, 1.1 + _BAR * tallest))
    handles: dict[str, Any] = {}
    for axes, (title, members) in zip(grid, groups.items(), strict=True):
        handles |= _draw(axes, members)
        axes.set_title(title, fontsize=10, loc="left")
    order = [name for name, _ in _PARTS if name in handles]
    legend_below(figure, {name: handles[name] for name in order}, 4, handlelength=2.5)
    return figure


def _draw(axes: Any, members: Sequence[AttributedRow]) -> dict[str, Any]:
    handles = {}
    lefts = [0.0] * len(members)
    for index, (name, parts) in enumerate(_PARTS):
        widths = [each.attribution.share(*parts) * (each.ms_per_token or 0) for each in members]
        if max(widths) <= 0:
            continue
        bars = axes.barh(
            range(len(members)),
            widths,
            left=lefts,
            height=0.72,
            color=_shade(index),
            edgecolor="#222222",
            linewidth=0.5,
            hatch=HATCHES[index % len(HATCHES)],
        )
        handles[name] = bars
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(members)), [each.row.target for each in members])
    axes.invert_yaxis()
    axes.set_xlabel("ms per output token of all requests together")
    axes.grid(visible=False, axis="y")
    return handles


def _shade(index: int) -> str:
    """Colours that are light enough for a hatch to be seen, and two greys beside them."""
    shades = (*COLORS[:-1], "#BBBBBB", "#EEEEEE", "#FFFFFF")
    return shades[index % len(shades)]
