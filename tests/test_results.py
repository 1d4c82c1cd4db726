"""What the repository shows is what its result files say."""

import io
import json
from pathlib import Path

import pytest

from llmopt.bench.metrics import summarize
from llmopt.report.embed import embed
from llmopt.report.render import render
from llmopt.results.store import read_results

ROOT = Path(__file__).parent.parent
RESULTS, ERRORS = read_results([ROOT / "results"])


def markdown(path: Path) -> str:
    results, errors = read_results([path])
    text = io.StringIO()
    render(results, errors, "markdown", text)
    return text.getvalue()


def test_there_are_results_and_all_are_readable():
    assert RESULTS
    assert ERRORS == []


def test_the_readme_shows_the_demo():
    document = (ROOT / "README.md").read_text()
    assert document == embed(document, markdown(ROOT / "results" / "demo")), "run `make readme`"


def test_the_readme_shows_the_methods():
    document = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "results").glob("methods-*")):
        assert document == embed(document, markdown(path), path.name), "run `make readme`"


def test_the_results_page_shows_all_results():
    page = (ROOT / "results" / "README.md").read_text()
    assert page == markdown(ROOT / "results"), "run `make readme`"


@pytest.mark.parametrize(
    "result",
    [result for result in RESULTS if result.load is not None],
    ids=lambda result: result.cell_id,
)
def test_summaries_follow_from_the_raw_events(result):
    assert result.error is None
    again = summarize(result.runs, result.cost, result.ceilings, result.model.compute_dtype)
    assert again == result.summary


def test_result_files_name_no_host():
    for path in (ROOT / "results").rglob("*.json"):
        assert "hostname" not in json.loads(path.read_text())["environment"]
