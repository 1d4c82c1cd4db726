from collections.abc import Callable
from dataclasses import replace

import pytest

from llmopt.report.rows import make_rows, newest
from llmopt.results.schema import CellResult, LengthSpec, SloTerm, ValidityCheck, WorkloadSpec

MakeResult = Callable[..., CellResult]


def test_speedups_are_ratios_of_the_medians_at_the_same_load(
    demo_results: list[CellResult],
) -> None:
    rows = {(row.target, row.load.concurrency): row for row in make_rows(demo_results)}
    at_1, at_8 = rows["gptq-w4g64", 1].speed, rows["gptq-w4g64", 8].speed
    assert at_1 is not None
    assert at_8 is not None
    assert at_1.speedup == pytest.approx(70.8 / 21.4)
    assert at_8.speedup == pytest.approx(170.1 / 84.0)
    assert at_1.tpot_speedup == pytest.approx(70.8 / 21.4)
    base = rows["fp32", 1].speed
    assert base is not None
    assert base.speedup == 1.0


def test_order_is_load_then_base_then_the_recipe(demo_results: list[CellResult]) -> None:
    order = [(result.load.concurrency, result.target) for result in newest(demo_results)]
    targets = ["fp32", "bf16", "rtn-w4g64", "gptq-w4g64", "gptq-w8g64"]
    assert order == [(1, name) for name in targets] + [(8, name) for name in targets]


def test_a_target_that_the_recipe_does_not_list_comes_last(make_result: MakeResult) -> None:
    results = [make_result("bf16", recipe={}), make_result("fp32", recipe={"targets": 3})]
    assert [result.target for result in newest(results)] == ["fp32", "bf16"]


def test_only_the_newest_result_of_a_cell_is_kept(make_result: MakeResult) -> None:
    old = make_result(created_at="2026-11-22T09:00:00Z", error="old")
    assert newest([make_result(), old]) == [make_result()]
    assert newest([old, make_result()]) == [make_result()]
    environment = replace(old.environment, device="Other CPU")
    assert len(newest([replace(old, environment=environment), make_result()])) == 2


def test_an_invalid_cell_keeps_quality_and_loses_speed(make_result: MakeResult) -> None:
    checks = (ValidityCheck("length", True, "as asked"), ValidityCheck("requests", False, "1 bad"))
    (row,) = make_rows([make_result(validity=checks)])
    assert row.status == "invalid"
    assert row.reason == "requests: 1 bad"
    assert row.speed is None
    assert row.quality is not None


def test_a_failed_cell_says_why_on_one_line(make_result: MakeResult) -> None:
    (row,) = make_rows([make_result(summary=None, error="no\nmemory", model=None, quality=None)])
    assert row.status == "failed"
    assert row.reason == "no memory"
    (row,) = make_rows([make_result(summary=None)])
    assert (row.status, row.reason) == ("failed", "nothing was measured")


@pytest.mark.parametrize(
    "change",
    [
        {"error": "broken"},
        {"validity": (ValidityCheck("requests", False, "1 bad"),)},
        {"recipe_name": "other"},
    ],
)
def test_there_is_no_speedup_without_a_believable_base(
    make_result: MakeResult, change: dict[str, object]
) -> None:
    rows = make_rows([make_result("fp32", **change), make_result("bf16")])
    assert rows[1].speed is not None
    assert rows[1].speed.speedup is None
    assert rows[1].speed.tpot_speedup is None


def test_a_base_on_another_machine_gives_no_speedup(make_result: MakeResult) -> None:
    base = make_result("fp32")
    base = replace(base, environment=replace(base.environment, num_threads=1))
    rows = make_rows([base, make_result("bf16")])
    assert rows[1].speed is not None
    assert rows[1].speed.speedup is None


def test_runs_without_a_tpot_have_no_tpot_speedup(make_result: MakeResult) -> None:
    result = make_result("bf16")
    assert result.summary is not None
    short = replace(result.summary, run_tpot_ms=(), tpot_ms=None)
    rows = make_rows([make_result("fp32"), replace(result, summary=short)])
    assert rows[1].speed is not None
    assert rows[1].speed.tpot_speedup is None
    assert rows[1].speed.speedup is not None


def test_quality_alone_is_nothing_wrong(methods_results: list[CellResult]) -> None:
    rows = make_rows(newest(methods_results))
    assert [row.target for row in rows[:3]] == ["fp32", "rtn-w4g64", "rtn-w4g64-asym"]
    assert {row.status for row in rows} == {"ok"}
    assert {row.load for row in rows} == {row.speed for row in rows} == {None}
    assert rows[0].is_base


def test_quality_that_is_missing_is_a_failure(make_method: MakeResult) -> None:
    (row,) = make_rows([make_method("nf4", quality=None)])
    assert (row.status, row.reason) == ("failed", "nothing was measured")
    (row,) = make_rows([make_method("nf4", quality=None, error="no\nmemory")])
    assert (row.status, row.reason) == ("failed", "no memory")


def test_a_base_under_another_workload_is_none(make_result: MakeResult) -> None:
    base, other = make_result("fp32"), make_result("gptq-w4g64")
    assert other.load is not None
    fixed = LengthSpec("fixed", 128, 128, 128)
    shared = replace(other.load, workload=WorkloadSpec(fixed, fixed, prefix_groups=1))
    (_, row) = make_rows([base, replace(other, load=shared)])
    assert row.speed is not None
    assert row.speed.speedup is None


def test_a_base_that_ran_longer_is_one(make_result: MakeResult) -> None:
    base, other = make_result("fp32"), make_result("gptq-w4g64")
    assert other.load is not None
    longer = replace(other.load, num_requests=99, slo=(SloTerm("ttft", 300.0, 95.0),))
    (_, row) = make_rows([base, replace(other, load=longer)])
    assert row.speed is not None
    assert row.speed.speedup is not None
