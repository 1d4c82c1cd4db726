import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmopt.report.plots.catalogue import make_figure
from llmopt.report.report import make_report
from llmopt.results.schema import CellResult

MakeResult = Callable[..., CellResult]


def text_boxes(axes: Any) -> list[Any]:
    """The boxes of the labels, without the lines that lead to them."""
    from matplotlib.text import Text

    renderer = axes.figure.canvas.get_renderer()
    return [Text.get_window_extent(text, renderer) for text in axes.texts]


def test_every_method_is_a_labelled_point(methods_results: list[CellResult]) -> None:
    (axes,) = make_figure(make_report(methods_results)).axes
    points = {c.get_label(): tuple(c.lines[0].get_xydata()[0]) for c in axes.containers}
    assert points["gptq-w4g64"] == (4.36, 0.27)
    names = {result.target for result in methods_results} - {"fp32"}
    assert set(points) == {text.get_text() for text in axes.texts} == names
    assert axes.get_yscale() == "log"


def test_labels_of_a_crowd_can_be_read(methods_results: list[CellResult]) -> None:
    (axes,) = make_figure(make_report(methods_results)).axes
    boxes, inside = text_boxes(axes), axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_methods_look_alike_and_others_are_hollow(methods_results: list[CellResult]) -> None:
    (axes,) = make_figure(make_report(methods_results)).axes
    marker = {c.get_label(): c.lines[0] for c in axes.containers}
    ours, wide = marker["gptq-w4g64"], marker["gptq-w8g64"]
    theirs = marker["gptqmodel-gptq-w4g64"]
    assert ours.get_color() == wide.get_color() == theirs.get_color()
    assert ours.get_marker() == wide.get_marker() == theirs.get_marker()
    assert ours.get_markerfacecolor() == ours.get_color()
    assert theirs.get_markerfacecolor() == "none"
    assert marker["nf4"].get_color() != ours.get_color()


def test_two_recipes_are_two_panels(methods_results: list[CellResult]) -> None:
    others = [replace(result, recipe_name="more") for result in methods_results]
    first, second = make_figure(make_report([*methods_results, *others])).axes
    assert first.get_title().startswith("methods: ")
    assert second.get_title().startswith("more: ")


def test_without_a_quantized_row_there_is_no_picture(make_method: MakeResult) -> None:
    failed = make_method("nf4", quality=None, error="gone")
    lossless = make_method("int8")
    assert lossless.quality is not None
    exact = replace(lossless, quality=replace(lossless.quality, kld_mean=0.0))
    assert make_figure(make_report([failed, exact])) is None
