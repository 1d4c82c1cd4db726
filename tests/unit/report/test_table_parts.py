from collections.abc import Callable
from dataclasses import replace
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st

from llmopt.report.columns import Column
from llmopt.report.render import render
from llmopt.report.table_parts import table_parts
from llmopt.results.schema import CellResult

KEY = Column("target", "target", lambda row: row.target, is_number=False)


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(40, 120))
def test_every_column_is_in_one_part_that_fits(widths: list[int], width: int) -> None:
    columns = [Column(f"c{i}", "x" * size, lambda row: "") for i, size in enumerate(widths)]
    parts = table_parts([KEY, *columns], [], width)
    assert [column for part in parts for column in part[1:]] == columns
    for part in parts:
        assert part[0] is KEY
        assert sum(len(column.header) + 1 for column in part) - 1 <= width


def test_parts_are_as_few_as_fit() -> None:
    columns = [Column(f"c{i}", "x" * 10, lambda row: "") for i in range(4)]
    assert len(table_parts([KEY, *columns], [], 6 + 4 * 11)) == 1
    assert len(table_parts([KEY, *columns], [], 6 + 4 * 11 - 1)) == 2


def test_a_long_name_keeps_its_line(make_result: Callable[..., CellResult]) -> None:
    """As "gptqmodel-awq-w4g64-a / sym" did not."""
    name = "gptqmodel-awq-w4g64-asym-with-an-overlong-name"
    result = make_result(target=name)
    out = StringIO()
    render([result, replace(make_result("bf16"), cell_id="b")], [], "terminal", out)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith(name + " ") for line in lines) == 2
    assert any("(continued)" in line for line in lines)
