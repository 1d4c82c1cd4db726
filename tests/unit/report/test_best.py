from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.report.best import best_cells, is_surely_better
from llmopt.report.measures import MEASURES, Estimate
from llmopt.report.rows import Row, make_rows
from llmopt.results.schema import CellResult

MakeResult = Callable[..., CellResult]


def with_runs(result: CellResult, *runs: float) -> CellResult:
    assert result.summary is not None
    return replace(result, summary=replace(result.summary, run_output_throughput=runs))


def rows_of(*results: CellResult) -> list[Row]:
    return make_rows([replace(r, cell_id=f"c{i}") for i, r in enumerate(results)])


def test_the_best_is_marked_where_its_interval_is_apart(make_result: MakeResult) -> None:
    fast = with_runs(make_result("gptq-w4g64"), 70, 71, 72)
    slow = with_runs(make_result("bf16"), 50, 51, 52)
    assert best_cells(rows_of(slow, fast), ["throughput"]) == {(1, "throughput")}
    near = with_runs(make_result("bf16"), 69, 70, 71)
    assert best_cells(rows_of(near, fast), ["throughput"]) == frozenset()


def test_a_single_run_is_never_best_and_keeps_others_from_it(make_result: MakeResult) -> None:
    once = with_runs(make_result("gptq-w4g64"), 70)
    slow = with_runs(make_result("bf16"), 50, 51, 52)
    assert best_cells(rows_of(slow, once), ["throughput"]) == frozenset()
    fast = with_runs(make_result("bf16"), 90, 91, 92)
    assert best_cells(rows_of(fast, once), ["throughput"]) == frozenset()


def test_loads_are_compared_apart_and_exact_ties_are_not_marked(make_result: MakeResult) -> None:
    rows = make_rows([make_result(t, c) for c in (1, 8) for t in ("bf16", "gptq-w8g64")])
    assert best_cells(rows, ["kld"]) == {(0, "kld"), (2, "kld")}
    assert best_cells(rows, ["size"]) == {(1, "size"), (3, "size")}
    tied = make_rows([make_result("rtn-w4g64"), make_result("gptq-w4g64")])
    assert best_cells(tied, ["size"]) == frozenset()


def test_sizes_that_look_the_same_are_not_told_apart(make_result: MakeResult) -> None:
    small, large = make_result("rtn-w4g64"), make_result("gptq-w4g64")
    assert small.model is not None
    for num_bytes, marks in ((113_900_000, frozenset()), (113_000_000, {(0, "size")})):
        smaller = replace(small, model=replace(small.model, file_bytes=num_bytes))
        assert best_cells(make_rows([smaller, large]), ["size"]) == marks


def test_what_is_not_comparable_is_not_compared(make_result: MakeResult) -> None:
    good, bad = make_result("bf16"), make_result("rtn-w4g64")
    assert bad.quality is not None
    assert bad.model is not None
    other = replace(bad, quality=replace(bad.quality, text_sha256="cd" * 32))
    assert best_cells(make_rows([good, bad]), ["kld"]) == {(0, "kld")}
    assert best_cells(make_rows([good, other]), ["kld"]) == frozenset()
    model = replace(bad, model=replace(bad.model, name="other"))
    assert best_cells(make_rows([good, model]), ["size", "kld"]) == frozenset()


def test_columns_without_a_better_side_are_not_marked(make_result: MakeResult) -> None:
    rows = make_rows([make_result("bf16"), make_result("rtn-w4g64")])
    assert best_cells(rows, ["target", "mfu", "mbu", "conc"]) == frozenset()


def test_an_invalid_row_is_not_best(make_result: MakeResult) -> None:
    failed = make_result("bf16", summary=None, error="gone")
    rows = make_rows([failed, make_result("rtn-w4g64"), make_result("gptq-w8g64")])
    assert best_cells(rows, ["kld"]) == {(2, "kld")}


ends = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).map(lambda pair: tuple(sorted(pair)))


@given(ends, ends)
def test_two_cannot_both_be_better(one: tuple[float, float], other: tuple[float, float]) -> None:
    first, second = Estimate(sum(one) / 2, one), Estimate(sum(other) / 2, other)
    apart = one[0] > other[1] or other[0] > one[1]
    wins = [is_surely_better(first, second, "higher"), is_surely_better(second, first, "higher")]
    assert sum(wins) == apart
    assert is_surely_better(first, second, "lower") == wins[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 114.0), ("kld", 0.294), ("ttft", 4000 / 70.8), ("throughput", 70.8)],
)
def test_measures_are_in_the_unit_of_their_column(
    make_result: MakeResult, name: str, value: float
) -> None:
    (row,) = make_rows([make_result("gptq-w4g64")])
    found = MEASURES[name].of(row)
    assert found is not None
    assert found.value == pytest.approx(value)
