import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.errors import ResultError
from llmopt.report.render import Format, render
from llmopt.results.schema import CellResult

MakeResult = Callable[..., CellResult]
Judge = Callable[[CellResult], CellResult]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rendered(results: list[CellResult], format: Format, out: io.StringIO | None = None) -> str:
    out = out or io.StringIO()
    render(results, [], format, out)
    return out.getvalue()


def test_plain_text_fits_100_columns_and_cuts_nothing(demo_results: list[CellResult]) -> None:
    lines = rendered(demo_results, "terminal").splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    (line,) = (line for line in lines if line.startswith("gptq-w4g64    1"))
    cells = "gptq-w4g64 1 114 6.79 0.294 [.273, .318] 68.5% 1.312 56.5 14.1 70.8 3.31x 14% 28%"
    assert " ".join(line.split()) == cells
    assert "…" not in "".join(lines)
    assert "\x1b" not in "".join(lines)


def test_verdicts_fit_100_columns_too(
    demo_results: list[CellResult], methods_results: list[CellResult], judged: Judge
) -> None:
    for results in (demo_results, methods_results):
        named = [
            replace(judged(result), target=result.target.ljust(14, "x")[:14]) for result in results
        ]
        lines = rendered(named, "terminal").splitlines()
        assert max(map(len, lines)) <= 100
        assert "…" not in "".join(lines)
        assert any(line.startswith("gptq-w8g64xxxx ") for line in lines)
        assert any(" worse " in line for line in lines)


def test_the_verdict_and_its_evidence_are_exported(make_result: MakeResult, judged: Judge) -> None:
    text = rendered([judged(make_result("gptq-w8g64")), make_result("bf16")], "csv")
    rows = {row["target"]: row for row in csv.DictReader(io.StringIO(text))}
    row = rows["gptq-w8g64"]
    assert row["verdict"] == "above noise"
    assert float(row["times_noise"]) == pytest.approx(0.0019 / 0.0004)
    assert float(row["times_noise_low"]) < float(row["times_noise"])
    assert row["noise_scheme"] == "bf16"
    assert row["noise_kld_mean_high"] == "0.00042"
    assert row["delta_p_rms"] == "0.1"
    assert row["protocol"] == "windows"
    assert row["bits_per_byte"] == "1.25"
    assert rows["bf16"]["verdict"] == rows["bf16"]["noise_kld_mean"] == ""


def test_a_long_name_is_folded_not_cut(make_result: MakeResult) -> None:
    name = "abcdefghijklmnopqrstuvwxyz0123456789"
    lines = rendered([make_result(target=name)], "terminal").splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    start = next(i for i, line in enumerate(lines) if line.startswith("abc"))
    folded = "".join(line.split(" ")[0] for line in lines[start : start + 4])
    assert folded.startswith(name)


def test_a_terminal_gets_colours(make_result: MakeResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    failed = make_result(summary=None, error="[bold]gone[/bold]")
    text = rendered([failed], "terminal", Terminal())
    assert "\x1b[31m" in text
    assert "[bold]gone[/bold]" in text


def test_markdown_has_one_row_per_cell_and_the_notes(demo_results: list[CellResult]) -> None:
    lines = rendered(demo_results, "markdown").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 12
    assert {line.count("|") for line in table} == {14}
    assert table[0].startswith("| target | conc | size MB | bits/weight | KLD [95 % CI] | top-1 |")
    assert sum(line.startswith("* ") for line in lines) >= 8


def test_markdown_is_not_broken_by_what_is_in_it(make_result: MakeResult) -> None:
    odd = make_result(target="a|b<i>", summary=None, error="x | y\nz")
    text = rendered([odd], "markdown")
    assert "| a\\|b&lt;i> |" in text
    assert "a\\|b&lt;i> at concurrency 1 failed: x \\| y z" in text


def test_csv_has_all_digits_and_empty_unknowns(make_result: MakeResult) -> None:
    failed = make_result("bf16", summary=None, error="gone, away", model=None)
    text = rendered([make_result("fp32"), make_result(), failed], "csv")
    rows = {row["target"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["gptq-w4g64"]["kld_mean"] == "0.294"
    assert float(rows["gptq-w4g64"]["speedup"]) == pytest.approx(70.8 / 21.4, rel=1e-12)
    assert float(rows["gptq-w4g64"]["ttft_p50_ms"]) == pytest.approx(4000 / 70.8, rel=1e-12)
    assert rows["fp32"]["is_base"] == "True"
    assert rows["fp32"]["kld_mean"] == ""
    assert rows["bf16"]["reason"] == "gone, away"
    assert rows["bf16"]["file_bytes"] == ""
    assert rows["bf16"]["mfu"] == ""
    assert rows["bf16"]["kld_mean"] == "0.00041"


def test_json_has_the_columns_of_the_csv(demo_results: list[CellResult]) -> None:
    document = json.loads(rendered(demo_results, "json"))
    header = rendered(demo_results, "csv").splitlines()[0].split(",")
    assert [list(row) for row in document["rows"]] == [header] * 10
    assert document["rows"][0]["kld_mean"] is None
    assert document["notes"]


def test_json_is_strict_whatever_the_numbers(make_result: MakeResult) -> None:
    result = make_result()
    assert result.quality is not None
    broken = replace(result, quality=replace(result.quality, ppl=float("inf")))
    text = rendered([broken], "json")
    assert json.loads(text, parse_constant=pytest.fail)["rows"][0]["ppl"] == "inf"


def test_nothing_to_report_is_an_error() -> None:
    one = ResultError("a.json is cut off", "Remove it.")
    with pytest.raises(ResultError, match=r"a\.json is cut off\. Remove it\."):
        render([], [one], "terminal", io.StringIO())
    with pytest.raises(ResultError, match="no files were given"):
        render([], [], "terminal", io.StringIO())
    with pytest.raises(ResultError, match=r"a\.json is cut off; a\.json is cut off"):
        render([], [one, one], "terminal", io.StringIO())


def test_bad_files_beside_good_ones_are_notes(make_result: MakeResult) -> None:
    out = io.StringIO()
    render([make_result()], [ResultError("a.json is cut off", "Remove it.")], "markdown", out)
    assert "* not read: a.json is cut off. Remove it.\n" in out.getvalue()


def test_reporting_imports_nothing_heavy() -> None:
    code = (
        "import sys, llmopt.report.render, llmopt.results.store\n"
        "print([m for m in ('torch', 'matplotlib', 'numpy', 'transformers') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_methods_fit_100_columns(methods_results: list[CellResult]) -> None:
    lines = rendered(methods_results, "terminal").splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    (line,) = (line for line in lines if line.startswith("gptqmodel-gptq-w4g64"))
    assert " ".join(line.split()) == (
        "gptqmodel-gptq-w4g64 gptqmodel 7.6.0 4.36 114 0.314 [.298, .333] 68.5% 1.312 12.3 1403"
    )


def test_the_methods_in_markdown_and_csv(methods_results: list[CellResult]) -> None:
    table = [line for line in rendered(methods_results, "markdown").splitlines() if "|" in line]
    head = "| target | engine | linear bits | size MB | KLD [95 % CI] | top-1 | PPL ratio |"
    assert table[0] == f"{head} seconds | peak MB |"
    assert len(table) - 2 >= len(methods_results)
    text = rendered(methods_results, "csv")
    rows = {row["target"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["nf4"]["quantization_s"] == "12.34"
    assert rows["nf4"]["quantization_shared_s"] == "61.2"
    assert rows["nf4"]["calibration_num_samples"] == "32"
    assert rows["nf4"]["concurrency"] == ""
    assert rows["fp32"]["quantization_engine"] == ""
