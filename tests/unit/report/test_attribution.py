"""The table of where time went, and the lines on why a row is as fast as it is."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from llmopt.report.attribution import profile_notes, write_attribution
from llmopt.report.render import render
from llmopt.report.report import make_report
from llmopt.report.rows import Row, make_rows
from llmopt.results.attribution import ProfiledPart, StepGroup, StepProfile, to_counters
from llmopt.results.schema import CellResult, CostModel, RequestRecord, RunRecord

# fp32 reads 538 MB a step at 11.4 GB/s, of which 113 MB are the lm_head's
HEAD = 113e6
COST = CostModel(212_000_000, 56_500_000, 69_120, 538_000_000, 46_080)


def with_steps(
    result: CellResult, weight_bytes: int, forward_s: float, sample_s: float
) -> CellResult:
    """Runs of 64 decode steps of one request, each with these seconds in all."""
    group = StepGroup(
        64, 64, 64, 64, 64, 64 * 160, 64 * 160 * 46_080, 64 * HEAD, forward_s, sample_s
    )
    stages = {"draft_s": 0.0, "schedule_s": 0.01, "update_s": 0.01}
    wall_s = forward_s + sample_s + 0.05
    times = tuple(wall_s * (i + 1) / 64 for i in range(64))
    request = RequestRecord(
        "r", 128, 64, 0.0, 0.0, times[0], wall_s, wall_s, times, (1,) * 64, "length"
    )
    runs = tuple(
        RunRecord(
            i, "2026-11-22T10:00:00Z", 0, wall_s, (request,), stages | to_counters(1, 1, group)
        )
        for i in range(3)
    )
    cost = replace(COST, weight_bytes=weight_bytes)
    return replace(result, runs=runs, cost=cost)


@pytest.fixture
def results(make_result: Any) -> list[CellResult]:
    w4 = with_steps(make_result("gptq-w4g64"), 173_000_000, 1.2, 0.2)
    return [with_steps(make_result("fp32"), 538_000_000, 4.0, 0.2), w4]


def text_of(results: list[CellResult], format: Any, *, explain: bool = True) -> str:
    out = io.StringIO()
    render(results, [], format, out, explain=explain)
    return out.getvalue()


def test_every_quantized_row_has_a_line_that_says_why(results):
    (line,) = (note for note in make_report(results).notes if "linear layers allow" in note)
    assert line == (
        "gptq-w4g64 at concurrency 1: 3.31x of the 7.08x that the bytes of its linear layers "
        "allow: lm_head is 65 % of the weights' bytes and stays in 32 bits (64 % of what is "
        "missing); sampling, scheduling and Python take 17 % of the time (25 %)."
    )


def test_rows_faster_than_their_bytes_allow_share_a_line(results, make_result):
    rows = [results[0], with_steps(make_result("gptq-w4g64"), 400_000_000, 1.2, 0.2)]
    rows.append(with_steps(make_result("fp32", 8), 538_000_000, 8.0, 0.2))
    rows.append(with_steps(make_result("gptq-w4g64", 8), 400_000_000, 1.0, 0.2))
    (line,) = (note for note in make_report(rows).notes if "linear layers" in note)
    assert line == (
        "Faster than the bytes of their linear layers allow, as the base is further from its own "
        "roofline: gptq-w4g64 at concurrency 1 (3.31x of 1.48x), gptq-w4g64 at concurrency 8 "
        "(2.02x of 1.48x)."
    )


def test_a_base_of_another_load_or_machine_explains_nothing(results):
    base, cell = results
    elsewhere = replace(base, environment=replace(base.environment, device="Another CPU"))
    busier = replace(base, load=replace(base.load, concurrency=8))
    other = replace(base, recipe_name="other")
    for wrong in (elsewhere, busier, other):
        assert not any("linear layers" in note for note in make_report([wrong, cell]).notes)


def test_each_load_is_explained_by_its_own_base(results, make_result):
    busy = with_steps(make_result("fp32", 8), 538_000_000, 8.0, 0.2)
    busy_w4 = with_steps(make_result("gptq-w4g64", 8), 173_000_000, 8.0, 0.2)

    def lines_of(*shown: CellResult) -> list[str]:
        return [note for note in make_report(shown).notes if "linear layers allow" in note]

    lines = lines_of(busy, busy_w4, *results)
    assert [line.split(":")[0] for line in lines] == [
        "gptq-w4g64 at concurrency 1",
        "gptq-w4g64 at concurrency 8",
    ]
    assert lines == [*lines_of(*results), *lines_of(busy, busy_w4)]


def test_rows_in_the_bases_scheme_are_not_explained(results):
    base, cell = results
    same = replace(cell, model=replace(cell.model, scheme="fp32"))
    assert not any("linear layers" in note for note in make_report([base, same]).notes)


def test_old_files_have_neither_lines_nor_a_table(demo_results):
    assert not any("linear layers" in note for note in make_report(demo_results).notes)
    text = text_of(demo_results, "terminal")
    assert text.endswith("only llmopt's own runtime counts it.\n")
    assert json.loads(text_of(demo_results, "json"))["attribution"] == []


def test_an_invalid_row_is_in_no_table(results):
    base, cell = results
    broken = replace(cell, validity=(replace(cell.validity[0], passed=False),))
    document = json.loads(text_of([base, broken], "json"))
    assert [row["target"] for row in document["attribution"]] == ["fp32"]


def test_the_table_adds_up_and_fits(results):
    text = text_of(results, "terminal")
    table = text[text.index("Where the time went") :]
    assert max(map(len, table.splitlines())) <= 100
    (line,) = (line for line in table.splitlines() if line.startswith("gptq-w4g64"))
    cells = line.split()
    assert cells[:3] == ["gptq-w4g64", "1", "22.7"]
    shares = [float(cell) for cell in cells[3:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "idle" not in table.split("\n", 4)[2]  # no row has any
    assert len(shares) == 7  # weights, KV, lm_head, above the roofline, sampling, host, rest


def test_without_the_option_there_is_no_table(results):
    assert "Where the time went" not in text_of(results, "terminal", explain=False)
    assert "attribution" not in json.loads(text_of(results, "json", explain=False))


def test_markdown_has_the_same_cells(results):
    text = text_of(results, "markdown")
    table = text[text.index("**Where the time went") :]
    (line,) = (line for line in table.splitlines() if line.startswith("| gptq-w4g64"))
    out = io.StringIO()
    write_attribution(results, out, markdown=False)
    (plain,) = (row for row in out.getvalue().splitlines() if row.startswith("gptq-w4g64"))
    assert line.strip("| ").split(" | ") == plain.split()
    assert "| weights |" in table.splitlines()[2]


def test_programs_get_seconds(results):
    document = json.loads(text_of(results, "json"))
    assert [row["target"] for row in document["attribution"]] == ["fp32", "gptq-w4g64"]
    found = document["attribution"][1]["attribution"]
    assert sum(part["seconds"] for part in found["parts"]) == pytest.approx(found["wall_s"])
    assert len(document["rows"]) == 2
    assert "attribution" not in text_of(results, "csv")


def test_a_profile_is_one_line_of_its_largest_parts(results):
    parts = (
        ProfiledPart("gate_up", 0.006, 30, "int4pack", 1e7, 1e9, 0.004),
        ProfiledPart("lm_head", 0.003, 1, "dense", 1e7, 1e9, 0.0025),
        ProfiledPart("sampler", 0.0005),
        ProfiledPart("qkv", 0.0003),
        ProfiledPart("rope", 0.0002),
    )
    profile = StepProfile("decode", 8, 8, 160, 20, 0.0098, 0.01, parts)
    base, cell = results
    cell = replace(cell, profile=(profile,))

    def name(row: Row) -> str:
        return row.target

    assert list(profile_notes([base, cell], make_rows([base, cell]), name)) == [
        "gptq-w4g64, decode step of 8 tokens, 9.80 ms: gate_up 60 % (1.5x its ideal), lm_head 30 % "
        "(1.2x its ideal), sampler 5 %."
    ]
    assert any("decode step of 8 tokens" in note for note in make_report([base, cell]).notes)
