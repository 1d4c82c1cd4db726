from collections.abc import Callable
from dataclasses import replace

import pytest

from llmopt.errors import UsageError
from llmopt.report.rows import make_rows
from llmopt.report.where import parse_condition
from llmopt.results.schema import CellResult


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("target=GPTQ*", ["gptq-w4g64", "gptq-w8g64"]),
        ("target!=*w?g64", ["fp32", "bf16"]),
        ("scheme = fp32", ["fp32"]),
        ("load=c1", ["fp32", "bf16", "rtn-w4g64", "gptq-w4g64", "gptq-w8g64"]),
        ("load=c8", []),
        ("backend=llmopt", ["fp32", "bf16", "rtn-w4g64", "gptq-w4g64", "gptq-w8g64"]),
        ("kld<0.01", ["bf16", "gptq-w8g64"]),
        ("kld <= 0.294", ["bf16", "gptq-w4g64", "gptq-w8g64"]),
        ("kld!=0.294", ["fp32", "bf16", "rtn-w4g64", "gptq-w8g64"]),
        ("throughput>70.8", ["rtn-w4g64"]),
        ("size>=538", ["fp32"]),
        ("status=ok", ["fp32", "bf16", "rtn-w4g64", "gptq-w4g64", "gptq-w8g64"]),
    ],
)
def test_conditions(make_result: Callable[..., CellResult], text: str, targets: list[str]) -> None:
    names = ("fp32", "bf16", "rtn-w4g64", "gptq-w4g64", "gptq-w8g64")
    condition = parse_condition(text)
    rows = make_rows([make_result(name) for name in names])
    assert [row.target for row in rows if condition.holds(row)] == targets


def test_open_loops_and_quality_have_names(make_result: Callable[..., CellResult]) -> None:
    result = make_result()
    assert result.load is not None
    rate = replace(result, load=replace(result.load, kind="poisson", rate=2.5))
    alone = replace(result, load=None, runs=(), summary=None)
    of_rate, of_quality = make_rows([rate, alone])
    assert parse_condition("load=2.5/s").holds(of_rate)
    assert parse_condition("load=none").holds(of_quality)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kld", "is no condition"),
        ("target<b", "makes no sense"),
        ("colour=red", "nothing named 'colour'"),
        ("kld<much", "'much' is no number"),
    ],
)
def test_what_is_no_condition_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_condition(text)
