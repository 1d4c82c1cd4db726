"""Names beside the markers of a plot, where they cover nothing.

Knows nothing about reports. The law: each label is put at the first of its places that overlaps
no marker, no error bar, no level line and no earlier label, or at the one that overlaps least.
"""

from collections.abc import Sequence
from typing import Any

_GAP = 6  # points between a marker and its label
_MARKER_RADIUS = 5  # points

# offset in points, horizontal and vertical alignment; diagonals first: error bars are never there
Place = tuple[int, int, str, str]
NEAR_PLACES: tuple[Place, ...] = (
    (_GAP, 3, "left", "bottom"),
    (_GAP, -3, "left", "top"),
    (-_GAP, 3, "right", "bottom"),
    (-_GAP, -3, "right", "top"),
    (_GAP, 12, "left", "bottom"),
    (_GAP, -12, "left", "top"),
    (-_GAP, 12, "right", "bottom"),
    (-_GAP, -12, "right", "top"),
)
# the same at larger distances, for crowds: a thin line leads from the marker to the label
FAR_PLACES: tuple[Place, ...] = tuple(
    (side * across, up, alignment, "center")
    for across in (24, 48, 80)
    for up in (0, 12, -12, 24, -24, 36, -36, 52, -52)
    for side, alignment in ((1, "left"), (-1, "right"))
)


def place_labels(figure: Any, axes: Any, places: Sequence[Place] = NEAR_PLACES) -> None:
    """Label every error-bar container of `axes` with its own label, in its own colour.

    `places` are tried in order; see `NEAR_PLACES` and `FAR_PLACES`.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    inside = axes.get_window_extent(renderer)
    taken = [text.get_window_extent(renderer) for text in axes.texts]
    radius = _MARKER_RADIUS * figure.dpi / 72
    taken += [line.get_window_extent(renderer) for line in axes.lines if _is_level(line)]
    for container in axes.containers:
        marker, caps, bars = container.lines
        x, y = axes.transData.transform(marker.get_xydata()[0])
        taken.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))
        taken += [line.get_window_extent(renderer) for line in (*caps, *bars)]
    for container in axes.containers:
        marker = container.lines[0]
        labels = [_label(axes, container, marker, place) for place in places]
        boxes = [_text_box(label, renderer) for label in labels]
        costs = [_cost(box, taken, inside) for box in boxes]
        best = costs.index(min(costs))
        for label in labels[:best] + labels[best + 1 :]:
            label.remove()
        taken.append(boxes[best])


def _is_level(line: Any) -> bool:
    """Whether it is a horizontal line, such as a roof, which no label should cross."""
    heights = line.get_ydata()
    return len(heights) == 2 and heights[0] == heights[1]


def _label(axes: Any, container: Any, marker: Any, place: Place) -> Any:
    dx, dy, horizontal, vertical = place
    color = marker.get_color()
    line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6}
    label = axes.annotate(
        container.get_label(),
        marker.get_xydata()[0],
        xytext=(dx, dy),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=8.5,
        color=color,
        arrowprops=line if place in FAR_PLACES else None,
    )
    label.set_in_layout(False)
    return label


def _text_box(label: Any, renderer: Any) -> Any:
    """The box of a label's text, without the line that leads to it."""
    from matplotlib.text import Text

    label.update_positions(renderer)
    return Text.get_window_extent(label, renderer)


def _cost(box: Any, taken: Sequence[Any], inside: Any) -> float:
    """Return how many of `taken` the box overlaps; leaving the axes is worst."""
    beyond = (box.x0 < inside.x0, box.x1 > inside.x1, box.y0 < inside.y0, box.y1 > inside.y1)
    return 100.0 * any(beyond) + sum(1.0 for other in taken if box.overlaps(other))
