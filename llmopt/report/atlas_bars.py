"""Bar charts of a page: where every bar, whisker, tick and label stands, ready to be drawn as SVG.

Knows nothing about what is shown, nor about markup. The law: everything lies inside of the chart's
own width and height, and the axis begins at 0, so that lengths of bars can be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP = 62.0, 12.0, 12.0  # pixels around the plot
PLOT_HEIGHT = 190.0
CHARACTER = 6.0  # pixels of a character of a label
MIN_LABEL_SPACING = 17.0  # pixels between labels that are turned
NUM_TICKS = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, if it has one; `style` is the name of its colour.

    A bar without a label belongs to the one before it.
    """

    label: str
    value: float
    title: str  # what the bar says in words, under the pointer
    style: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class PlacedBar:
    """A bar's rectangle and whisker, in pixels."""

    bar: Bar
    x: float
    y: float
    width: float
    height: float
    whisker: tuple[float, float] | None  # y of the upper and of the lower end

    @property
    def center(self) -> float:
        """Of the bar, from the left."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across the plot and its label."""

    y: float
    text: str


@dataclass(frozen=True, slots=True)
class BarChart:
    """A chart of `width` x `height` pixels; `labelled` are the bars whose label is shown."""

    width: float
    height: float
    bars: tuple[PlacedBar, ...]
    labelled: tuple[PlacedBar, ...]
    labels_turned: bool
    ticks: tuple[Tick, ...]
    left: float = LEFT
    bottom: float = TOP + PLOT_HEIGHT

    @property
    def right(self) -> float:
        """Where the plot ends."""
        return self.width - RIGHT


def bar_chart(bars: Sequence[Bar], width: float) -> BarChart:
    """Place bars side by side in a chart of `width` pixels. Values are finite and at least 0."""
    assert bars, "a chart has a bar"
    top = max(max(bar.value, bar.interval[1] if bar.interval else 0.0) for bar in bars)
    values = nice_ticks(top)
    scale = PLOT_HEIGHT / values[-1]
    slot = (width - LEFT - RIGHT) / len(bars)
    placed = tuple(_place(bar, index, slot, scale) for index, bar in enumerate(bars))
    named = [bar for bar in placed if bar.bar.label]
    spacing = (width - LEFT - RIGHT) / max(1, len(named))
    longest = max(len(bar.label) for bar in bars) * CHARACTER
    turned = longest > spacing - 2
    every = math.ceil(MIN_LABEL_SPACING / spacing) if turned else 1
    below = 14 + 0.7 * longest if turned else 22
    return BarChart(
        width=width,
        height=TOP + PLOT_HEIGHT + below,
        bars=placed,
        labelled=tuple(named[::every]),
        labels_turned=turned,
        ticks=tuple(Tick(_y(value, scale), f"{value:.3g}") for value in values),
    )


def nice_ticks(top: float) -> list[float]:
    """Round values from 0 up to the first that is not below `top`."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top / NUM_TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * NUM_TICKS >= top)
    count = math.ceil(top / step - 1e-9)
    return [index * step for index in range(count + 1)]


def _place(bar: Bar, index: int, slot: float, scale: float) -> PlacedBar:
    y = _y(bar.value, scale)
    ends = bar.interval
    return PlacedBar(
        bar=bar,
        x=LEFT + (index + 0.14) * slot,
        y=y,
        width=0.72 * slot,
        height=TOP + PLOT_HEIGHT - y,
        whisker=None if ends is None else (_y(ends[1], scale), _y(ends[0], scale)),
    )


def _y(value: float, scale: float) -> float:
    return TOP + PLOT_HEIGHT - value * scale
