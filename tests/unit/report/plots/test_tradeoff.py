import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import OutputError
from llmopt.report.plots.catalogue import make_figure, write_plot
from llmopt.report.report import make_report
from llmopt.results.schema import CellResult

MakeResult = Callable[..., CellResult]


def label_boxes(axes: Any) -> list[Any]:
    renderer = axes.figure.canvas.get_renderer()
    return [text.get_window_extent(renderer) for text in axes.texts]


def test_the_demo_is_drawn_to_a_png(tmp_path: Path, demo_results: list[CellResult]) -> None:
    path = write_plot(make_report(demo_results), tmp_path / "plots" / "demo.png")
    assert path == tmp_path / "plots" / "demo.png"
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") > 1000  # pixels across


def test_one_panel_per_load_with_the_base_as_a_line(demo_results: list[CellResult]) -> None:
    figure = make_figure(make_report(demo_results))
    first, second = figure.axes
    assert first.get_title() == "concurrency 1: 128 prompt + 64 output tokens"
    assert second.get_title().startswith("concurrency 8")
    names = [text.get_text() for text in first.texts]
    assert sorted(names) == ["bf16", "fp32 (base)", "gptq-w4g64", "gptq-w8g64", "rtn-w4g64"]
    points = {c.get_label(): tuple(c.lines[0].get_xydata()[0]) for c in first.containers}
    assert points["gptq-w4g64"] == (70.8, 0.294)
    assert first.get_yscale() == "log"


def test_a_target_looks_the_same_in_every_panel(make_result: MakeResult) -> None:
    results = [
        make_result("bf16", 1),
        make_result("gptq-w4g64", 1),
        make_result("gptq-w4g64", 8),
    ]
    figure = make_figure(make_report(results))
    (_, gptq_1), (gptq_8,) = (axes.containers for axes in figure.axes)
    assert gptq_1.lines[0].get_color() == gptq_8.lines[0].get_color()
    assert gptq_1.lines[0].get_marker() == gptq_8.lines[0].get_marker()


def test_labels_cover_neither_each_other_nor_the_edge(make_result: MakeResult) -> None:
    crowd = []
    for index in range(6):
        result = make_result("gptq-w4g64", target=f"target-{index}", cell_id=f"cell-{index}")
        assert result.quality is not None
        quality = replace(result.quality, kld_mean=0.29 + 0.03 * index)
        crowd.append(replace(result, quality=quality))
    (axes,) = make_figure(make_report(crowd)).axes
    boxes = label_boxes(axes)
    assert len(boxes) == 6
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("klds", "scale"),
    [((0.3, 0.4), "linear"), ((0.001, 0.4), "log"), ((0.0, 0.001, 0.4), "symlog")],
)
def test_the_axis_is_logarithmic_only_where_it_helps(
    make_result: MakeResult, klds: tuple[float, ...], scale: str
) -> None:
    results = []
    for index, kld in enumerate(klds):
        result = make_result(target=f"t{index}", cell_id=f"c{index}")
        assert result.quality is not None
        quality = replace(result.quality, kld_mean=kld, kld_mean_ci=(kld, kld))
        results.append(replace(result, quality=quality))
    (axes,) = make_figure(make_report(results)).axes
    assert axes.get_yscale() == scale


def test_many_panels_make_rows(make_result: MakeResult) -> None:
    result = make_result()
    results = [
        replace(result, cell_id=f"c{n}", load=replace(result.load, concurrency=n, num_requests=n))
        for n in (1, 2, 4, 8)
    ]
    figure = make_figure(make_report(results))
    assert len(figure.axes) == 4
    width, height = figure.get_size_inches()
    assert width > 12
    assert height >= 8


def test_without_a_row_that_has_both_there_is_no_picture(
    tmp_path: Path, make_result: MakeResult
) -> None:
    path = tmp_path / "none.png"
    results = [
        make_result("fp32"),
        make_result("bf16", quality=None),
        make_result("gptq-w4g64", summary=None, error="gone"),
    ]
    assert write_plot(make_report(results), path) is None
    assert not path.exists()


def test_a_picture_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, demo_results: list[CellResult]
) -> None:
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(OutputError, match=r"plot\.png cannot be written"):
        write_plot(make_report(demo_results), tmp_path / "plot.png")
