import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from llmopt.errors import OutputError
from llmopt.report.gate.gate_json import to_json_text
from llmopt.report.gate.history import entry_name, record
from llmopt.report.gate.junit import to_junit
from llmopt.report.gate.pr_comment import MARKER, to_markdown
from llmopt.report.gate.rules import DEFAULT_RULES
from llmopt.report.gate.step_summary import append_summary
from llmopt.report.gate.terminal import print_gate
from llmopt.report.gate.verdict import GateReport, Row, judge
from llmopt.report.gate.wording import change_text, headline
from llmopt.results.store import read_results

NASTY = "a|b<script>\x00*c*\n[x](y)"


@pytest.fixture(scope="module")
def report(session) -> GateReport:
    """Two cells that became slower, one of which is missing a partner of the baseline."""
    old, new = session(0, slowdown=1.15)
    third = replace(old[0], cell_id="sim-third-c4")
    return judge([*old, third], new, DEFAULT_RULES)


def test_the_terminal_text_fits_100_columns_and_ends_with_the_verdict(report):
    out = io.StringIO()
    print_gate(report, out)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1] == headline(report)
    assert lines[-1].startswith("REGRESSED: ")
    assert "\x1b" not in out.getvalue()
    assert any("sim-third-c4" in line and "INCONCLUSIVE" in line for line in lines)


def test_a_throughput_that_fell_is_shown_as_falling(report):
    row = next(row for row in report.rows if row.metric == "output_throughput")
    text = change_text(row)
    assert text.startswith("-")
    low, high = (float(end) for end in text.partition("[")[2].rstrip("]").split(", "))
    assert low < float(text.split(" ")[0]) < high < 0
    slower = next(row for row in report.rows if row.metric == "tpot_p50")
    assert change_text(slower).startswith("+")


def test_json_has_every_comparison(report):
    document = json.loads(to_json_text(report))
    assert (document["verdict"], document["exit_code"]) == ("REGRESSED", 1)
    assert len(document["comparisons"]) == len(report.rows)
    assert document["comparisons"][1]["adjusted_p"] == report.rows[1].adjusted_p


def test_junit_counts_failures_and_skipped_tests(report):
    root = ElementTree.fromstring(to_junit(report))
    suite = root.find("testsuite")
    assert len(suite.findall("testcase")) == len(report.rows) == int(suite.get("tests"))
    assert len(suite.findall("testcase/failure")) == report.count("REGRESSED")
    assert len(suite.findall("testcase/skipped")) == report.count("INCONCLUSIVE")
    assert int(root.get("failures")) == report.count("REGRESSED") > 0


def test_the_comment_begins_with_the_verdict(report):
    lines = to_markdown(report).splitlines()
    assert "REGRESSED" in lines[0]
    assert MARKER in lines[0]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(report.rows)


def test_nothing_in_a_name_breaks_a_format():
    row = Row(NASTY, NASTY, "REGRESSED", NASTY)
    report = GateReport("REGRESSED", (row,), (NASTY,))
    case = ElementTree.fromstring(to_junit(report)).find("testsuite/testcase")
    assert case.get("name") == NASTY.replace("\x00", "?")
    (line,) = [line for line in to_markdown(report).splitlines() if line.startswith("| a")]
    assert line.replace("\\|", "").count("|") == 8
    assert "<script>" not in to_markdown(report)
    assert json.loads(to_json_text(report))["notes"] == [NASTY]


def test_the_step_summary_is_appended_where_it_is_asked_for(report, tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    assert append_summary(report, {}) is None
    assert append_summary(report, {"GITHUB_STEP_SUMMARY": str(path)}) == path
    assert path.read_text().startswith("before\n### ")
    with pytest.raises(OutputError, match="GITHUB_STEP_SUMMARY"):
        append_summary(report, {"GITHUB_STEP_SUMMARY": str(tmp_path)})


def test_the_history_is_plain_result_files_by_date_and_commit(session, tmp_path):
    old, _ = session(0)
    record(tmp_path, old)
    record(tmp_path, old)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    assert names[:2] == [
        "2026-11-22-0000000/sim-base-c4/0001-0000000.json",
        "2026-11-22-0000000/sim-base-c4/0002-0000000.json",
    ]
    found, errors = read_results([tmp_path])
    assert not errors
    assert found[0] == old[0]
    odd = replace(old[0], environment=replace(old[0].environment, git_sha="../../x"))
    assert entry_name(odd) == "2026-11-22-x"
