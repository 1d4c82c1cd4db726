import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from llmopt.errors import UsageError
from llmopt.report.choice import Choice
from llmopt.report.render import Format, render
from llmopt.report.report import Report, make_report
from llmopt.report.where import parse_condition
from llmopt.results.schema import CellResult

MakeResult = Callable[..., CellResult]


def rendered(results: list[CellResult], format: Format, choice: Choice) -> str:
    out = io.StringIO()
    render(results, [], format, out, choice=choice)
    return out.getvalue()


def with_speed(result: CellResult, throughput: float) -> CellResult:
    assert result.summary is not None
    runs = (throughput,) * 3
    return replace(result, summary=replace(result.summary, run_output_throughput=runs))


def headers(report: Report) -> list[list[str]]:
    return [[column.name for column in section.columns] for section in report.sections]


def test_groups_of_columns_leave_out_what_is_empty(demo_results: list[CellResult]) -> None:
    choice = Choice(columns=("quality", "mfu", "cost"))
    assert headers(make_report(demo_results, choice=choice)) == [
        ["target", "conc", "kld", "top1", "ppl_ratio", "mfu"]
    ]
    with pytest.raises(UsageError, match="no column 'speeed'"):
        make_report(demo_results, choice=Choice(columns=("speeed",)))


def test_rows_by_load_stand_beside_other_backends(make_result: MakeResult) -> None:
    result = make_result()
    other = replace(result, backend=replace(result.backend, name="vllm"))
    elsewhere = replace(result, environment=replace(result.environment, device="Other CPU"))
    report = make_report([result, other, elsewhere], choice=Choice(group_by="load"))
    assert [(section.title, len(section.rows)) for section in report.sections] == [
        ("load c1 on Test CPU (2 cores, 2 threads)", 2),
        ("load c1 on Other CPU (2 cores, 2 threads)", 1),
    ]
    assert headers(report)[0][:3] == ["target", "backend", "conc"]
    assert headers(report)[1][:2] == ["target", "conc"]


def test_one_table_per_target(demo_results: list[CellResult]) -> None:
    report = make_report(demo_results, choice=Choice(group_by="target"))
    assert [section.title.split(" on ")[0] for section in report.sections] == [
        "fp32",
        "bf16",
        "rtn-w4g64",
        "gptq-w4g64",
        "gptq-w8g64",
    ]


@pytest.mark.parametrize(
    ("sort", "first", "last"),
    [
        ("kld", "bf16", "fp32"),  # of which the KLD is not known
        ("-kld", "rtn-w4g64", "fp32"),
        ("throughput", "rtn-w4g64", "fp32"),
        ("-throughput", "fp32", "rtn-w4g64"),
        ("target", "bf16", "rtn-w4g64"),
    ],
)
def test_rows_are_sorted_best_first(
    make_result: MakeResult, sort: str, first: str, last: str
) -> None:
    results = [make_result(name) for name in ("gptq-w4g64", "fp32", "rtn-w4g64", "bf16")]
    rows = make_report(results, choice=Choice(sort=sort)).rows
    assert (rows[0].target, rows[-1].target) == (first, last)


def test_what_cannot_be_sorted_by_is_said(make_result: MakeResult) -> None:
    with pytest.raises(UsageError, match="cannot be sorted by 'colour'"):
        make_report([make_result()], choice=Choice(sort="colour"))


def test_conditions_hide_rows_but_not_their_base(demo_results: list[CellResult]) -> None:
    choice = Choice(where=(parse_condition("target=gptq-w4g64"), parse_condition("load=c8")))
    (row,) = make_report(demo_results, choice=choice).rows
    assert row.speed is not None
    assert row.speed.speedup == pytest.approx(170.1 / 84.0)
    with pytest.raises(UsageError, match="No row meets"):
        make_report(demo_results, choice=Choice(where=(parse_condition("load=c3"),)))


def test_the_baseline_is_what_speedups_are_against(demo_results: list[CellResult]) -> None:
    report = make_report(demo_results, choice=Choice(baseline="bf16"))
    ratios = {
        (r.target, r.load.concurrency): r.speed.speedup for r in report.rows if r.load and r.speed
    }
    assert ratios["gptq-w4g64", 1] == pytest.approx(70.8 / 39.7)
    assert ratios["fp32", 8] == pytest.approx(84.0 / 150.2)
    assert {row.baseline for row in report.rows} == {"bf16"}
    assert any("speed-up is against bf16" in note for note in report.notes)
    with pytest.raises(UsageError, match="no target or backend 'fp64'"):
        make_report(demo_results, choice=Choice(baseline="fp64"))


def test_a_baseline_of_another_backend(make_result: MakeResult) -> None:
    ours, theirs = make_result("gptq-w4g64"), make_result("bf16")
    theirs = replace(theirs, backend=replace(theirs.backend, name="vllm"))
    same = with_speed(make_result("bf16", cell_id="same"), 12.0)  # not the one that is named
    rows = make_report([ours, theirs, same], choice=Choice(baseline="vllm:bf16")).rows
    (row,) = (row for row in rows if row.target == "gptq-w4g64")
    assert row.speed is not None
    assert row.speed.speedup == pytest.approx(70.8 / 39.7)


def test_the_same_target_on_another_backend(make_result: MakeResult) -> None:
    ours = [make_result("bf16"), make_result("gptq-w4g64", cell_id="b")]
    theirs = [
        with_speed(replace(each, backend=replace(each.backend, name="vllm")), speed)
        for each, speed in zip(ours, (20.0, 14.0), strict=True)
    ]
    rows = make_report([*ours, *theirs], choice=Choice(baseline="vllm")).rows
    ratios = [row.speed.speedup for row in rows if row.speed]
    assert ratios == pytest.approx([39.7 / 20, 70.8 / 14, 1, 1])


def test_chosen_columns_in_csv_and_json(demo_results: list[CellResult]) -> None:
    choice = Choice(columns=("kld", "throughput"), where=(parse_condition("load=c1"),))
    rows = list(csv.DictReader(io.StringIO(rendered(demo_results, "csv", choice))))
    assert list(rows[0])[-6:] == [
        "kld_nats",
        "kld_nats_low",
        "kld_nats_high",
        "throughput_tokens_per_s",
        "throughput_tokens_per_s_low",
        "throughput_tokens_per_s_high",
    ]
    values = {row["target"]: row for row in rows}
    assert values["gptq-w4g64"]["throughput_tokens_per_s"] == "70.8"
    assert values["fp32"]["kld_nats"] == ""
    document = json.loads(rendered(demo_results, "json", choice))
    assert list(document["rows"][0]) == list(rows[0])


def test_the_best_is_bold_in_markdown_and_latex_and_explained(
    demo_results: list[CellResult],
) -> None:
    text = rendered(demo_results, "markdown", Choice())
    (line,) = (line for line in text.splitlines() if line.startswith("| bf16 | 1 |"))
    assert "| **0.00041 [.00038, .00044]** |" in line
    assert "* Bold: the best of its column" in text
    latex = rendered(demo_results, "latex", Choice())
    assert r"\textbf{0.00041 [.00038, .00044]}" in latex
    plain = rendered(demo_results, "terminal", Choice())
    assert "Bold" not in plain


def test_latex_runs_no_command_of_a_name(make_result: MakeResult) -> None:
    odd = make_result(target=r"a_b\input{x}%$&", summary=None, error="50% ^~#")
    text = rendered([odd], "latex", Choice())
    assert r"a\_b\textbackslash{}input\{x\}\%\$\&" in text
    assert r"50\% \textasciicircum{}\textasciitilde{}\#" in text
    assert text.count("{tabular}") == 2
