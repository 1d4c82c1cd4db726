from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.report.column_choice import columns_of
from llmopt.report.columns import kld_text, three_digits, verdict_text
from llmopt.report.rows import Row, make_rows
from llmopt.results.schema import CellResult, Verdict, VerdictLabel

Judge = Callable[[CellResult], CellResult]


def texts(row: Row) -> dict[str, str]:
    return {column.header.replace("\n", " "): column.text(row) for column in columns_of([row])}


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


def test_verdicts_have_a_column_where_a_noise_floor_was_measured(
    make_method: Callable[..., CellResult], judged: Judge
) -> None:
    old = make_method("nf4")
    assert "vs\nnoise" not in [column.header for column in columns_of(make_rows([old]))]
    base = make_method("int8", target="fp32", quality=None)
    rows = make_rows([base, judged(make_method("int8")), old])
    (column,) = (column for column in columns_of(rows) if column.header == "vs\nnoise")
    assert [column.text(row) for row in rows] == ["–", "worse", "–"]


def test_beside_speed_the_verdict_takes_the_place_of_the_bits(
    make_result: Callable[..., CellResult], judged: Judge
) -> None:
    bf16, w8, w4 = make_rows(
        [judged(make_result(name)) for name in ("bf16", "gptq-w8g64", "gptq-w4g64")]
    )
    cells = texts(bf16)
    assert "bits/ weight" not in cells
    assert cells["vs noise"] == "= base"
    assert texts(w8)["vs noise"] == "4.8x"
    assert texts(w4)["vs noise"] == "worse"


@pytest.mark.parametrize(
    ("label", "times", "text"),
    [
        ("indistinguishable", 0.0, "= base"),
        ("indistinguishable", 1.04, "= base"),
        ("above noise", 1.14, "1.1x"),
        ("above noise", 9.96, "10x"),
        ("above noise", 312.4, "312x"),
        ("worse", 312.4, "worse"),
    ],
)
def test_a_verdict_is_six_characters_at_most(label: VerdictLabel, times: float, text: str) -> None:
    assert verdict_text(Verdict(label, times, (times, times), "")) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.99958, "1.000"),
        (1.3124, "1.312"),
        (9.99949, "9.999"),
        (9.9996, "10.0"),
        (24762.5, "24762"),
        (3.2e7, "3e+07"),
    ],
)
def test_a_perplexity_ratio_fits_its_column(
    make_result: Callable[..., CellResult], ratio: float, text: str
) -> None:
    result = make_result("gptq-w4g64")
    assert result.quality is not None
    (row,) = make_rows([replace(result, quality=replace(result.quality, ppl_ratio=ratio))])
    assert texts(row)["PPL ratio"] == text


def test_a_lower_bound_says_so(make_result: Callable[..., CellResult]) -> None:
    result = make_result("gptq-w4g64")
    assert result.quality is not None
    (row,) = make_rows([replace(result, quality=replace(result.quality, lower_bound=True))])
    assert kld_text(row) == "≥0.294 [.273, .318]"


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
        (10.594, 10.06, 11.125, "10.6 [10.1, 11.1]"),
        (1.2341, 1.1, 1.31, "1.234 [1.100, 1.310]"),
        (0.0651, 0.0612, 0.0689, "0.065 [.061, .069]"),
        (0.00171, 0.0016, 0.00183, "0.0017 [.0016, .0018]"),
        (0.000171, 0.00016, 0.000183, "0.00017 [.00016, .00018]"),
        (0.0, 0.0, 0.0, "<0.00001"),
        (float("inf"), 1.0, float("inf"), "inf [1.0, inf]"),
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
