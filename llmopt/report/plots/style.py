"""How pictures look, and how they become files or text.

Knows nothing about what is drawn. The law: what differs in colour differs in shape too (marker,
dashes or hatches), colours are those of Okabe and Ito, text is drawn as paths, and the same figure
gives the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmopt.results.files import make_directory, output_error

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo", "||||")
_DPI = 150
_SALT = "llmopt"
_IDS = re.compile(r"""(\bid="|\burl\(#|href="#)""")


def look(index: int) -> dict[str, str]:
    """Return colour and marker number `index`; neighbours differ in both."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[(index + index // len(COLORS)) % len(MARKERS)],
    }


def dashes(index: int) -> Any:
    """Return the line style that goes with look number `index`."""
    return DASHES[(index + index // len(COLORS)) % len(DASHES)]


def draw_line(
    axes: Any,
    points: Sequence[tuple[float, float, tuple[float, float] | None]],
    index: int,
    label: str,
) -> None:
    """A line through points (x, y, interval of y) in look number `index`; bars are intervals."""
    ends = [interval or (y, y) for _, y, interval in points]
    axes.errorbar(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        yerr=[
            [max(y - low, 0) for (_, y, _), (low, _) in zip(points, ends, strict=True)],
            [max(high - y, 0) for (_, y, _), (_, high) in zip(points, ends, strict=True)],
        ],
        **look(index),
        linestyle=dashes(index),
        linewidth=1.3,
        markersize=5.5,
        elinewidth=0.8,
        capsize=2,
        label=label,
    )


def legend_below(
    figure: Any, handles: Mapping[str, Any], most_across: int, handlelength: float = 3.5
) -> None:
    """One legend for all panels of a figure, below them. handles: by label."""
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(most_across, len(handles)),
        fontsize=8.5,
        frameon=False,
        handlelength=handlelength,
    )


def new_figure(
    panels: int, across: int, size: tuple[float, float], **shared: Any
) -> tuple[Any, list[Any]]:
    """A figure with this number of panels of `size` inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(panels, across)
    down = -(-panels // across)
    figure = Figure(figsize=(size[0] * across, size[1] * down), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, **shared)
    for axes in grid.flat[panels:]:
        axes.remove()
    for axes in grid.flat[:panels]:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(grid.flat[:panels])


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG if the name ends so, else as PNG. Raises OutputError."""
    make_directory(path.parent)
    content = svg_bytes(figure) if path.suffix.lower() == ".svg" else png_bytes(figure)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise output_error(path, error) from error


def png_bytes(figure: Any) -> bytes:
    """The figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format="png")
    return stream.getvalue()


def svg_bytes(figure: Any) -> bytes:
    """The figure as an SVG file."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    settings = {"svg.fonttype": "path", "svg.hashsalt": _SALT}
    with rc_context(settings):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def svg_element(figure: Any, prefix: str) -> str:
    """The figure as an element for a page; `prefix` keeps its ids apart from others'."""
    text = svg_bytes(figure).decode()
    element = text[text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return _IDS.sub(rf"\g<1>{prefix}-", element).rstrip()
