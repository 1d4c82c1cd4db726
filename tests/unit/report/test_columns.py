from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.report.columns import SPEED_COLUMNS, columns_of, kld_text, three_digits
from llmopt.report.rows import Row, make_rows
from llmopt.results.schema import CellResult


def texts(row: Row) -> dict[str, str]:
    return {column.header.replace("\n", " "): column.text(row) for column in SPEED_COLUMNS}


def test_a_row_as_text(make_result: Callable[..., CellResult]) -> None:
    rows = make_rows([make_result("fp32"), make_result("gptq-w4g64")])
    assert texts(rows[1]) == {
        "target": "gptq-w4g64",
        "conc": "1",
        "size MB": "114",
        "bits/ weight": "6.79",
        "KLD [95 % CI]": "0.294 [.273, .318]",
        "top-1": "68.5%",
        "PPL ratio": "1.312",
        "TTFT ms": "56.5",
        "TPOT ms": "14.1",
        "tok/s": "70.8",
        "speed -up": "3.31x",
        "MFU": "14%",
        "MBU": "28%",
    }
    assert texts(rows[0])["KLD [95 % CI]"] == "base"


def test_a_method_as_text(make_method: Callable[..., CellResult]) -> None:
    rows = make_rows([make_method("gptq-w4g64"), make_method("gptqmodel-gptq-w4g64")])
    columns = columns_of(rows)
    assert {c.header.replace("\n", " "): [c.text(row) for row in rows] for c in columns} == {
        "target": ["gptq-w4g64", "gptqmodel-gptq-w4g64"],
        "engine": ["llmopt", "gptqmodel 7.6.0"],
        "linear bits": ["4.36", "4.36"],
        "size MB": ["114", "114"],
        "KLD [95 % CI]": ["0.270 [.257, .286]", "0.314 [.298, .333]"],
        "top-1": ["68.5%", "68.5%"],
        "PPL ratio": ["1.312", "1.312"],
        "seconds": ["12.3", "12.3"],
        "peak MB": ["1403", "1403"],
    }


def test_columns_that_say_nothing_are_left_out(make_method: Callable[..., CellResult]) -> None:
    result = make_method("nf4")
    headers = [column.header for column in columns_of(make_rows([result]))]
    assert headers[:2] == ["target", "linear\nbits"]
    assert headers[-1] == "peak\nMB"
    assert result.quantization is not None
    on_gpu = replace(result.quantization, device_peak_bytes=2_000_000_000)
    (row,) = make_rows([replace(result, quantization=on_gpu)])
    (*_, last) = columns_of([row])
    assert (last.header, last.text(row)) == ("GPU\nMB", "2000")


def test_a_method_that_failed_says_so(make_method: Callable[..., CellResult]) -> None:
    failed = make_method("nf4", error="gone", model=None, quality=None, quantization=None)
    (row,) = make_rows([failed])
    cells = [column.text(row) for column in columns_of([row])]
    assert cells == ["nf4", "–", "–", "failed", "–", "–", "–", "–"]


def test_what_is_not_known_is_a_dash(make_result: Callable[..., CellResult]) -> None:
    result = make_result(summary=None, error="gone", model=None, quality=None)
    cells = texts(make_rows([result])[0])
    assert cells.pop("target") == "gptq-w4g64"
    assert cells.pop("conc") == "1"
    assert cells.pop("tok/s") == "failed"
    assert set(cells.values()) == {"–"}


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (1.2341, 1.1, 1.31, "1.234 [1.100, 1.310]"),
        (0.0651, 0.0612, 0.0689, "0.065 [.061, .069]"),
        (0.00171, 0.0016, 0.00183, "0.0017 [.0016, .0018]"),
        (0.000171, 0.00016, 0.000183, "0.00017 [.00016, .00018]"),
        (0.0, 0.0, 0.0, "<0.00001"),
        (float("inf"), 1.0, float("inf"), "inf [1.000, inf]"),
    ],
)
def test_kld_has_the_digits_that_matter(
    make_result: Callable[..., CellResult], mean: float, low: float, high: float, text: str
) -> None:
    result = make_result("bf16")
    assert result.quality is not None
    quality = replace(result.quality, kld_mean=mean, kld_mean_ci=(low, high))
    (row,) = make_rows([replace(result, quality=quality)])
    assert kld_text(row) == text


@given(st.floats(0.01, 1e6))
def test_three_digits_are_right_to_half_a_percent_and_short(value: float) -> None:
    text = three_digits(value)
    assert float(text) == pytest.approx(value, rel=0.005, abs=0.005)
    assert len(text) <= max(4, len(str(int(value))) + 1)
