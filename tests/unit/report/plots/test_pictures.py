"""Every kind of picture: what it shows, and that it can be read."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.report.choice import EVERYTHING, Choice
from llmopt.report.plots.catalogue import make_figure, write_plot
from llmopt.report.plots.kernels import kernel_figure
from llmopt.report.plots.style import DASHES, HATCHES, dashes, look, svg_bytes, svg_element
from llmopt.report.plots.tradeoff import Point, pareto_front
from llmopt.report.report import make_report
from llmopt.results.attribution import StepGroup, to_counters
from llmopt.results.kernels import OURS, KernelResult, KernelRow
from llmopt.results.schema import CellResult, CostModel, RequestRecord, RunRecord

MakeResult = Callable[..., CellResult]


def figure_of(results: list[CellResult], name: Any, choice: Choice = EVERYTHING) -> Any:
    return make_figure(make_report(results, choice=choice), name, results)


def at_loads(make_result: MakeResult, *loads: int) -> list[CellResult]:
    found = []
    for target, load in itertools.product(("fp32", "bf16", "gptq-w4g64"), loads):
        result = make_result(target)
        assert result.load is not None
        cell = f"{target}-{load}"
        found.append(replace(result, cell_id=cell, load=replace(result.load, concurrency=load)))
    return found


def served(result: CellResult, *ttfts_s: float, failed: int = 0) -> CellResult:
    """One run with a request for each TTFT, and some that failed."""
    good = [
        RequestRecord(
            f"r{i}", 128, 3, 0.0, 0.0, t, t + 0.2, t + 0.2, (t, t + 0.2), (1, 2), "length"
        )
        for i, t in enumerate(ttfts_s)
    ]
    bad = [
        replace(good[0], request_id=f"f{i}", error="gone", first_token_s=None)
        for i in range(failed)
    ]
    stats = {"num_steps": 100.0}
    run = RunRecord(0, "2026-11-22T10:00:00Z", 0, 2.0, (*good, *bad), stats)
    return replace(result, runs=(run,))


def with_steps(result: CellResult) -> CellResult:
    group = StepGroup(64, 64, 64, 64, 64, 64 * 160, 64 * 160 * 46_080, 64 * 113e6, 1.2, 0.2)
    times = tuple(1.5 * (i + 1) / 64 for i in range(64))
    request = RequestRecord("r", 128, 64, 0.0, 0.0, times[0], 1.5, 1.5, times, (1,) * 64, "length")
    stages = {"draft_s": 0.0, "schedule_s": 0.01, "update_s": 0.01, "num_steps": 64.0}
    stages |= to_counters(1, 1, group)
    run = RunRecord(0, "2026-11-22T10:00:00Z", 0, 1.5, (request,), stages)
    cost = CostModel(212_000_000, 56_500_000, 69_120, 173_000_000, 46_080)
    return replace(result, runs=(run,), cost=cost)


def test_the_size_picture_has_every_target_once(demo_results: list[CellResult]) -> None:
    (axes,) = figure_of(demo_results, "size").axes
    points = {c.get_label(): tuple(c.lines[0].get_xydata()[0]) for c in axes.containers}
    assert points["gptq-w4g64"] == (114.0, 0.294)
    assert len(axes.containers) == 4
    assert "lower is better" in axes.get_xlabel()


def test_boxes_are_the_intervals(make_result: MakeResult) -> None:
    (axes,) = figure_of([make_result("gptq-w4g64")], "throughput").axes
    (box,) = axes.patches
    assert box.get_y() == pytest.approx(0.93 * 0.294)
    assert box.get_y() + box.get_height() == pytest.approx(1.08 * 0.294)
    assert box.get_x() < 0.98 * 70.8 < 1.03 * 70.8 < box.get_x() + box.get_width()


def test_runtimes_in_one_panel_are_named(make_result: MakeResult) -> None:
    ours = [make_result("fp32"), make_result("gptq-w4g64", cell_id="b")]
    theirs = [replace(each, backend=replace(each.backend, name="vllm")) for each in ours]
    (axes,) = figure_of([*ours, *theirs], "throughput", Choice(group_by="load")).axes
    texts = {text.get_text() for text in axes.texts}
    assert {"gptq-w4g64 on llmopt", "gptq-w4g64 on vllm"} <= texts
    assert {"fp32 on llmopt (base)", "fp32 on vllm (base)"} <= texts


points = st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.001, 1)), min_size=1, max_size=12)


@given(points, st.booleans())
def test_the_pareto_front_is_what_no_other_point_beats(
    found: list[tuple[float, float]], higher: bool
) -> None:
    all_points = [Point(str(i), str(i), x, (x, x), y, (y, y)) for i, (x, y) in enumerate(found)]
    front = pareto_front(all_points, higher=higher)
    sign = -1 if higher else 1

    def beats(one: Point, other: Point) -> bool:
        no_worse = sign * one.x <= sign * other.x and one.y <= other.y
        return no_worse and (one.x, one.y) != (other.x, other.y)

    best = {(p.x, p.y) for p in all_points if not any(beats(other, p) for other in all_points)}
    assert {(point.x, point.y) for point in front} == best
    assert [point.x for point in front] == sorted(point.x for point in front)


def test_scaling_joins_the_loads_of_a_target(make_result: MakeResult) -> None:
    figure = figure_of(at_loads(make_result, 1, 4, 16), "scaling")
    throughput, ttft, tpot = figure.axes
    assert len(throughput.containers) == 3
    assert [axes.get_ylabel() for axes in (ttft, tpot)] == ["TTFT p95, ms", "TPOT p50, ms"]
    assert [tick.get_text() for tick in throughput.get_xticklabels()] == ["1", "4", "16"]
    assert figure_of(at_loads(make_result, 4), "scaling") is None


def test_rates_are_on_a_linear_axis(make_result: MakeResult) -> None:
    results = []
    for rate in (1.0, 2.5):
        result = make_result("bf16")
        assert result.load is not None
        load = replace(result.load, kind="poisson", rate=rate)
        results.append(replace(result, cell_id=f"r{rate}", load=load))
    axes = figure_of(results, "scaling").axes[0]
    assert axes.get_xlabel() == "requests per second"
    assert list(axes.containers[0].lines[0].get_xdata()) == [1.0, 2.5]


def test_a_distribution_ends_below_1_where_requests_failed(make_result: MakeResult) -> None:
    results = [
        served(make_result("fp32"), 0.1, 0.2, 0.3, 0.4),
        served(make_result("bf16"), 0.1, 0.2, 0.3, failed=1),
    ]
    ttft, _, whole = figure_of(results, "latency").axes
    ends = [line.get_ydata()[-1] for line in ttft.lines]
    assert ends == [1.0, 0.75]
    assert list(ttft.lines[0].get_xdata()) == pytest.approx([100, 100, 200, 300, 400])
    assert list(ttft.lines[0].get_ydata()) == [0, 0.25, 0.5, 0.75, 1.0]
    assert whole.get_xlabel() == "end to end, ms"
    assert figure_of([make_result("fp32")], "latency") is None


def test_points_are_below_the_roof_that_mfu_and_mbu_are_shares_of(make_result: MakeResult) -> None:
    cost = CostModel(2_000, 200, 2, 1_000, 10)
    result = replace(served(make_result("bf16"), 0.1, 0.2), cost=cost)
    (axes,) = figure_of([result], "roofline").axes
    (point,) = (tuple(c.lines[0].get_xydata()[0]) for c in axes.containers)
    flops = 2 * (130 * 2_000 + 3 * 200 + 130 * 131 // 2 * 2)
    moved = 100 * 1_000 + 2 * (130 + 128 + 129 + 130) * 10
    assert point == pytest.approx((flops / moved, flops / 2.0 / 1e9))
    texts = [text.get_text() for text in axes.texts]
    assert "205 GFLOP/s in bfloat16" in texts
    assert "11.4 GB/s" in texts


def test_the_parts_of_a_bar_sum_to_the_time_of_a_token(make_result: MakeResult) -> None:
    (axes,) = figure_of([with_steps(make_result("gptq-w4g64"))], "time").axes
    widths = [bar.get_width() for bars in axes.containers for bar in bars]
    assert sum(widths) == pytest.approx(1000 * 1.5 / 64)
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bars in axes.containers for bar in bars}
    assert len(looks) == len(axes.containers) > 3
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gptq-w4g64"]


def test_history_is_by_date_and_of_cells_with_a_past(make_result: MakeResult) -> None:
    results = []
    for day in (3, 1, 2):
        result = make_result("bf16", created_at=f"2026-11-0{day}T10:00:00Z")
        environment = replace(result.environment, git_sha=f"{day}234567890")
        results.append(replace(result, environment=environment))
    results.append(make_result("fp32"))
    figure = figure_of(results, "history")
    throughput, _, kld = figure.axes
    (line,) = throughput.containers
    assert line.get_label() == "demo-bf16-c1"
    assert list(line.lines[0].get_xdata()) == [0, 1, 2]
    assert [tick.get_text() for tick in kld.get_xticklabels()] == [
        "2026-11-01 1234567",
        "2026-11-02 2234567",
        "2026-11-03 3234567",
    ]
    assert figure_of([make_result("fp32")], "history") is None


def kernel_result(result: CellResult) -> KernelResult:
    rows = []
    for tokens in (1, 8, 64):
        for contender, seconds in ((OURS, 1e-5 * (1 + tokens / 8)), ("torch bf16", 4e-5)):
            times = (seconds, seconds, seconds)
            rows.append(
                KernelRow(
                    "wna16", "64x64", tokens, contender, "", None, *times, 5, False, 1, 1.0, "bf16"
                )
            )
    assert result.ceilings is not None
    return KernelResult(
        1, "kernels", result.environment, None, None, None, {}, result.ceilings, "s", tuple(rows)
    )


def test_a_kernel_pays_up_to_a_batch(make_result: MakeResult) -> None:
    (axes,) = kernel_figure([kernel_result(make_result())]).axes
    _, line = axes.lines
    assert list(line.get_xdata()) == [1, 8, 64]
    assert list(line.get_ydata()) == pytest.approx([4 / 1.125, 2.0, 4 / 9])
    assert line.get_label() == "64x64: faster up to 8"
    assert kernel_figure([]) is None


def test_neighbours_differ_in_colour_and_in_shape() -> None:
    looks = [look(i) for i in range(14)]
    assert len({tuple(each.values()) for each in looks}) == 14
    for one, other in itertools.pairwise(range(14)):
        assert look(one)["color"] != look(other)["color"]
        assert look(one)["marker"] != look(other)["marker"]
        assert dashes(one) != dashes(other)
    assert len(set(map(str, DASHES))) == len(DASHES)
    assert len(set(HATCHES)) == len(HATCHES)


def test_svg_has_its_text_as_paths_and_is_the_same_each_time(
    demo_results: list[CellResult], tmp_path: Path
) -> None:
    first, again = (svg_bytes(figure_of(demo_results, "throughput")) for _ in range(2))
    assert first == again
    assert b"<text" not in first
    assert b"<path" in first
    path = write_plot(make_report(demo_results), tmp_path / "a.svg", "throughput")
    assert path is not None
    assert path.read_bytes() == first


def test_ids_of_pictures_on_a_page_stay_apart(demo_results: list[CellResult]) -> None:
    one = svg_element(figure_of(demo_results, "throughput"), "one")
    two = svg_element(figure_of(demo_results, "size"), "two")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', one))
    assert used
    assert used <= ids[0]
    assert one.startswith("<svg")
    assert one.endswith("</svg>")


@pytest.mark.parametrize("name", ["throughput", "latency", "roofline", "time", "history"])
def test_names_in_pictures_are_neither_markup_nor_formulas(
    make_result: MakeResult, name: str
) -> None:
    odd = r"</svg><script>alert(1)</script> & $\nonsense{$"
    result = with_steps(make_result("gptq-w4g64", target=odd, cell_id=odd, recipe_name=odd))
    older = replace(result, created_at="2026-11-21T10:05:00Z")
    figure = figure_of([older, result], name)
    assert "<script" not in svg_element(figure, "p")
