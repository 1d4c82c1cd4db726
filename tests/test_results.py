"""What the repository shows is what its result files say."""

import io
import json
import re
from pathlib import Path

import pytest

from llmopt.bench.metrics import summarize_cell
from llmopt.bench.validity import check_cell
from llmopt.report.choice import EVERYTHING, Choice
from llmopt.report.embed import embed
from llmopt.report.render import render
from llmopt.results.codec import to_json
from llmopt.results.store import read_results

ROOT = Path(__file__).parent.parent
RESULTS, ERRORS = read_results([ROOT / "results"])
OF_RUNTIMES = Choice(baseline="llmopt", group_by="load")  # as the Makefile asks


def markdown(path: Path, choice: Choice = EVERYTHING) -> str:
    results, errors = read_results([path])
    text = io.StringIO()
    render(results, errors, "markdown", text, choice=choice)
    return text.getvalue()


def test_there_are_results_and_all_are_readable():
    assert RESULTS
    assert ERRORS == []


def test_the_readme_shows_the_demo():
    document = (ROOT / "README.md").read_text()
    assert document == embed(document, markdown(ROOT / "results" / "demo")), "run `make readme`"


def test_the_readme_shows_the_other_results_that_it_names():
    document = (ROOT / "README.md").read_text()
    names = re.findall(r"^<!-- begin llmopt report (\S+) -->$", document, re.MULTILINE)
    assert names
    for name in names:
        choice = OF_RUNTIMES if name.startswith("backends-") else EVERYTHING
        table = markdown(ROOT / "results" / name, choice)
        assert document == embed(document, table, name), "run `make readme`"


def test_the_results_page_shows_all_results():
    page = (ROOT / "results" / "README.md").read_text()
    assert page == markdown(ROOT / "results"), "run `make readme`"


def test_the_page_of_other_runtimes_shows_their_ratios():
    folder = ROOT / "results" / "cpu-peers"
    assert (folder / "README.md").read_text() == markdown(folder, OF_RUNTIMES), "run `make readme`"


@pytest.mark.parametrize(
    "result",
    [result for result in RESULTS if result.load is not None],
    ids=lambda result: result.cell_id,
)
def test_summaries_follow_from_the_raw_events(result):
    """Fields that came later than a file, and are empty in it, are not compared."""
    assert result.error is None
    found, stored = to_json(summarize_cell(result)), to_json(result.summary)
    assert known(found, stored) == stored


def known(found, stored):
    """What `found` has of the fields that `stored` knows."""
    if isinstance(stored, dict):
        return {name: known(found[name], value) for name, value in stored.items()}
    return None if stored is None else found


def test_the_comparison_of_summaries_can_fail():
    assert known({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": None}) == {"a": {"b": 1}, "c": None}
    assert known({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) != {"a": {"b": 3}, "c": 2}


@pytest.mark.parametrize(
    "result",
    [result for result in RESULTS if result.load is not None],
    ids=lambda result: result.cell_id,
)
def test_results_pass_the_checks_of_today(result):
    """llama-cpp-python serves one request after another, and a machine may drift: rows say so."""
    failed = [check.name for check in check_cell(result.load, result.runs) if not check.passed]
    is_serial = result.backend.name == "llama-cpp-python" and result.load.concurrency > 1
    assert set(failed) - {"drift"} == ({"parallelism"} if is_serial else set())
    assert failed == [check.name for check in result.validity if not check.passed]


def test_result_files_name_no_host():
    for path in (ROOT / "results").rglob("*.json"):
        assert "hostname" not in json.loads(path.read_text())["environment"]
