"""The pictures that a report can have, by name, and how one is written to a file.

Knows nothing about how any of them is drawn. The law: a picture that would be empty is none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from llmopt.report.plots.distributions import distribution_figure
from llmopt.report.plots.history import history_figure
from llmopt.report.plots.kernels import kernel_figure
from llmopt.report.plots.plain_names import plain_report, plain_results
from llmopt.report.plots.roofline import roofline_figure
from llmopt.report.plots.scaling import scaling_figure
from llmopt.report.plots.schemes import scheme_figure
from llmopt.report.plots.style import save
from llmopt.report.plots.time_parts import time_figure
from llmopt.report.plots.tradeoff import size_figure, throughput_figure
from llmopt.report.report import Report, shown_rows
from llmopt.results.kernels import KernelResult
from llmopt.results.schema import CellResult

PictureName = Literal[
    "tradeoff",
    "throughput",
    "size",
    "bits",
    "scaling",
    "latency",
    "roofline",
    "time",
    "history",
    "kernels",
]


@dataclass(frozen=True, slots=True)
class Material:
    """What pictures are drawn from: the report, all results behind it, and kernel results."""

    report: Report
    results: Sequence[CellResult] = ()
    kernels: Sequence[KernelResult] = ()

    def with_plain_names(self) -> "Material":
        """The same with names as matplotlib is to read them."""
        return Material(plain_report(self.report), plain_results(self.results), self.kernels)


@dataclass(frozen=True, slots=True)
class Picture:
    """A kind of picture: its title on a page, and the function that draws it, or None."""

    title: str
    draw: Callable[[Material], Any]


def _of_rows(draw: Callable[..., Any]) -> Callable[[Material], Any]:
    """Rows of the report beside their results."""

    def figure(material: Material) -> Any:
        results, rows = shown_rows(material.results, material.report.choice)
        return draw(rows, results)

    return figure


PICTURES: Mapping[PictureName, Picture] = MappingProxyType(
    {
        "throughput": Picture(
            "Quality against throughput", lambda material: throughput_figure(material.report)
        ),
        "size": Picture("Quality against size", lambda material: size_figure(material.report)),
        "bits": Picture(
            "Quality against bits of the linear layers",
            lambda material: scheme_figure(material.report),
        ),
        "scaling": Picture(
            "Throughput and latency by load", lambda material: scaling_figure(material.report)
        ),
        "latency": Picture("Distributions of latencies", _of_rows(distribution_figure)),
        "roofline": Picture("Roofline", _of_rows(roofline_figure)),
        "time": Picture("Where the time went", _of_rows(time_figure)),
        "history": Picture("History", lambda material: history_figure(material.results)),
        "kernels": Picture("Kernels by batch", lambda material: kernel_figure(material.kernels)),
    }
)


def drawn_pictures(material: Material) -> Iterator[tuple[PictureName, str, Any]]:
    """Yield name, title and matplotlib Figure of every picture that is not empty."""
    material = material.with_plain_names()
    for name, picture in PICTURES.items():
        figure = picture.draw(material)
        if figure is not None:
            yield name, picture.title, figure


def write_plot(
    report: Report,
    path: str | Path,
    name: PictureName = "tradeoff",
    results: Sequence[CellResult] = (),
    kernels: Sequence[KernelResult] = (),
) -> Path | None:
    """Draw a picture to a PNG, or to an SVG if the name ends so, and return its path.

    None if there is nothing to draw. Raises OutputError.
    """
    figure = make_figure(report, name, results, kernels)
    if figure is None:
        return None
    save(figure, Path(path))
    return Path(path)


def make_figure(
    report: Report,
    name: PictureName = "tradeoff",
    results: Sequence[CellResult] = (),
    kernels: Sequence[KernelResult] = (),
) -> Any:
    """Return the picture as a matplotlib Figure; None if there is nothing to draw.

    "tradeoff" is quality against throughput where rows have both, else against bits.
    """
    material = Material(report, results, kernels).with_plain_names()
    if name == "tradeoff":
        return PICTURES["throughput"].draw(material) or PICTURES["bits"].draw(material)
    return PICTURES[name].draw(material)
