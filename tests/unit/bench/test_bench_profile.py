"""`llmopt bench --profile` and `llmopt report --explain` from end to end on a tiny model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmopt.cli.app import app
from llmopt.results.store import read_results

pytestmark = pytest.mark.usefixtures("known_ceilings")


@pytest.fixture
def out(tiny_model_path: Path, tmp_path: Path) -> tuple[Path, str]:
    """The results of a profiled bench, and what it printed."""
    results = tmp_path / "profiled"
    options = ["--concurrency", "2", "--requests", "4", "--repeats", "2", "--no-quality"]
    options += ["--prompt-tokens", "16", "--output-tokens", "4", "--out", str(results)]
    run = CliRunner().invoke(app, ["bench", str(tiny_model_path), *options, "--profile"])
    assert run.exit_code == 0, run.output
    return results, run.stdout


def test_a_profile_is_in_the_result_and_on_the_screen(out):
    results, printed = out
    ((result,), errors) = read_results([results])
    assert errors == []
    assert [profile.kind for profile in result.profile] == ["decode", "prefill"]
    assert result.profile[0].num_tokens == 2
    assert "decode step of 2 tokens" in printed
    assert "gate_up" in printed
    assert len(result.runs) == 2  # none of them profiled


def test_the_report_explains_where_the_time_went(out):
    results, _ = out
    (path,) = results.rglob("*.json")
    document = json.loads(path.read_text())
    document["validity"] = []  # a machine that is busy with other tests makes a row invalid
    path.write_text(json.dumps(document))
    shown = CliRunner().invoke(app, ["report", str(results), "--explain"]).stdout
    assert "Where the time went, in percent of the wall time" in shown
    assert "decode step of 2 tokens" in shown
    text = CliRunner().invoke(app, ["report", str(results), "--explain", "-f", "json"]).stdout
    (row,) = json.loads(text)["attribution"]
    parts = row["attribution"]["parts"]
    assert sum(part["seconds"] for part in parts) == pytest.approx(row["attribution"]["wall_s"])
    plain = CliRunner().invoke(app, ["report", str(results)]).stdout
    assert "Where the time went" not in plain
