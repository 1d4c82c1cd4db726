"""Open loops, SLOs, energy and cost in the report."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from llmopt.bench.definitions import DEFINITIONS
from llmopt.cli.report import report as report_command
from llmopt.report.column_choice import columns_of
from llmopt.report.columns import load_text
from llmopt.report.export import flat, to_csv
from llmopt.report.notes import make_notes
from llmopt.report.priced import priced
from llmopt.report.render import Format, render
from llmopt.report.report import make_report
from llmopt.report.restated import restated
from llmopt.report.rows import Row, make_rows
from llmopt.results.schema import (
    CellResult,
    Goodput,
    LengthSpec,
    LoadSpec,
    Percentiles,
    RequestRecord,
    SloTerm,
    SteadySummary,
    WorkloadSpec,
)
from llmopt.results.store import write_once

MakeResult = Callable[..., CellResult]
SLO = (SloTerm("ttft", 500, 95), SloTerm("tpot", 50))
OPEN = LoadSpec(8, 40, 128, 64, 1, kind="poisson", rate=4.0, slo=SLO)
SERVED = RequestRecord("request-0", 128, 2, 0.0, 0.0, 0.5, 0.6, 0.6, (0.5, 0.6), (1, 1), "length")


def text_of(results: Sequence[CellResult], form: Format = "terminal") -> str:
    out = io.StringIO()
    render(results, [], form, out)
    return out.getvalue()


def with_summary(result: CellResult, **changes: object) -> CellResult:
    assert result.summary is not None
    return replace(result, summary=replace(result.summary, **changes))


@pytest.fixture
def open_results(make_result: MakeResult, judged: Callable[..., CellResult]) -> list[CellResult]:
    """Base and target under a Poisson load with an SLO, with a verdict, energy and a price."""
    results = []
    for name, share in (("fp32", 0.6), ("gptq-w4g64", 1.0)):
        result = judged(make_result(name, concurrency=8, load=OPEN))
        good = Goodput(4 * share, 256 * share, share, share == 1.0)
        results.append(
            with_summary(
                result,
                goodput=good,
                joules_per_token=1.5,
                steady=SteadySummary(90.0, 270.0, 0.8),
            )
        )
    return results


def test_an_open_loop_shows_its_rate_and_goodput(open_results: list[CellResult]) -> None:
    rows = make_rows(open_results)
    headers = [column.header for column in columns_of(rows)]
    assert "load" in headers
    assert "good\nput" in headers
    assert "MFU" not in headers
    texts = {column.header: column.text(rows[0]) for column in columns_of(rows)}
    assert texts["load"] == "4/s"
    assert texts["good\nput"] == "60%"


def test_all_of_it_fits_100_columns(open_results: list[CellResult]) -> None:
    lines = text_of(open_results).splitlines()
    assert max(map(len, lines)) <= 100
    assert any("gptq-w4g64" in line and "100%" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "8"),
        ({"kind": "constant", "rate": 0.25}, "0.25/s"),
        ({"kind": "gamma", "rate": 1234.0}, "1.23e+03/s"),
        ({"kind": "burst"}, "burst"),
        ({"kind": "trace"}, "trace"),
    ],
)
def test_a_load_in_a_few_letters(changes: dict[str, object], text: str) -> None:
    assert load_text(replace(LoadSpec(8, 40, 128, 64, 1), **changes)) == text


def notes_of(results: Sequence[CellResult]) -> list[str]:
    return make_notes(results, make_rows(results), 0, [])


def test_the_notes_tell_the_slo_the_load_and_the_energy(open_results: list[CellResult]) -> None:
    notes = notes_of(open_results)
    assert (
        "fp32 at 4/s misses the SLO (ttft p95 <= 500 ms, tpot <= 50 ms): goodput 2.40 requests/s, "
        "60.0 % of all." in notes
    )
    assert any(note.startswith("gptq-w4g64 at 4/s keeps the SLO") for note in notes)
    assert "Energy per output token, J: fp32 at 4/s 1.50, gptq-w4g64 at 4/s 1.50." in notes
    assert (
        "Load: open loop (poisson) of 40 requests at 4 requests/s, 128 prompt and 64 output tokens "
        "each; 3 runs." in notes
    )


def test_lengths_of_a_workload_are_means(make_result: MakeResult) -> None:
    lengths = LengthSpec("lognormal", 128.0, 1, 500, 0.5)
    load = replace(OPEN, workload=WorkloadSpec(lengths, lengths))
    (note,) = (n for n in notes_of([make_result("fp32", load=load)]) if n.startswith("Load"))
    assert "each on average; 3 runs." in note


def test_other_loads_of_one_concurrency_are_not_compared(make_result: MakeResult) -> None:
    base = make_result("fp32", load=replace(OPEN, rate=2.0))
    target = make_result("gptq-w4g64", load=OPEN)
    rows = make_rows([base, target])
    assert rows[1].speed is not None
    assert rows[1].speed.speedup is None


def speed_row(results: Sequence[CellResult]) -> Row:
    return make_rows(results)[1]


def test_a_speedup_is_of_pairs_of_runs(make_result: MakeResult) -> None:
    """Runs on a machine whose speed changes: each pair says 2, the medians alone would not."""
    base = with_summary(make_result("fp32"), run_output_throughput=(10.0, 20.0, 15.0))
    target = with_summary(make_result("gptq-w4g64"), run_output_throughput=(20.0, 40.0, 30.0))
    speed = speed_row([base, target]).speed
    assert speed is not None
    assert speed.speedup == pytest.approx(2.0)
    assert speed.speedup_ci == pytest.approx((2.0, 2.0))
    fewer = with_summary(target, run_output_throughput=(20.0, 40.0))
    speed = speed_row([base, fewer]).speed
    assert speed is not None
    assert speed.speedup == pytest.approx(30 / 15)  # no pairs: the medians
    assert speed.speedup_ci is None


def test_every_definition_is_in_the_export(open_results: list[CellResult]) -> None:
    result = with_summary(
        open_results[1], ntpot_ms=Percentiles(1.0, 2.0, 3.0, 4.0, 2.5, 9), peak_concurrency=7
    )
    values = flat(make_rows([result])[0])
    assert values["goodput_per_s"] == 4.0
    assert values["goodput_tokens_tokens_per_s"] == 256.0
    assert values["output_throughput_steady_tokens_per_s"] == 90.0
    assert values["joules_per_token_j"] == 1.5
    assert values["ntpot_p99_ms"] == 4.0
    assert values["peak_concurrency_requests"] == 7
    assert values["slo_met"] is True
    assert values["rate_per_s"] == 4.0
    for name in DEFINITIONS:
        assert any(column.startswith(name) for column in values), name
    header, *_ = csv.reader(io.StringIO(to_csv(make_report(open_results))))
    assert len(set(header)) == len(header)


def test_a_price_gives_the_cost(make_result: MakeResult) -> None:
    result = priced(make_result("fp32"), 3.6)  # 21.4 tok/s
    assert result.summary is not None
    assert result.summary.cost_per_million_tokens == pytest.approx(0.001 / 21.4 * 1e6)
    (note,) = (note for note in notes_of([result]) if note.startswith("Cost"))
    assert note.endswith("in the unit of the price: fp32 at concurrency 1 46.7.")
    failed = priced(make_result("fp32", summary=None, error="boom"), 3.6)
    assert failed.summary is None


def served(result: CellResult) -> CellResult:
    return replace(result, runs=(replace(result.runs[0], requests=(SERVED,)),))


def test_the_same_runs_as_another_tool_defines_them(make_result: MakeResult) -> None:
    text = restated([served(make_result("fp32")), make_result("bf16", error="boom")], "vllm")
    assert "demo-fp32-c1, as vllm defines it:" in text
    assert "mean_tpot_ms                                          100" in text
    assert "failed: boom" in text


def test_the_command_line_has_both(make_result: MakeResult, tmp_path) -> None:
    write_once(tmp_path, served(make_result("fp32")))
    app = typer.Typer()
    app.command()(report_command)
    shown = CliRunner().invoke(app, [str(tmp_path), "--as", "guidellm"])
    assert shown.exit_code == 0
    assert "time_to_first_token_ms.mean" in shown.output
    shown = CliRunner().invoke(app, [str(tmp_path), "--price-per-hour", "3.6"])
    assert shown.exit_code == 0
    assert "fp32 at concurrency 1 46.7" in " ".join(shown.output.split())
