import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmopt.bench import paired_runs
from llmopt.cli.app import app
from llmopt.errors import ResultError, UsageError
from llmopt.report.gate.noise_floor import read_noise

DEMO = Path(__file__).parents[3] / "results" / "demo"
RECIPE = Path(__file__).parents[3] / "recipes" / "gate.yaml"


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["gate", *map(str, arguments)])


def test_results_against_themselves_do_not_regress(tmp_path):
    found = invoke(DEMO, "--baseline", DEMO, "--junit", tmp_path / "j.xml", "--json")
    document = json.loads(found.stdout)
    assert found.exit_code == document["exit_code"]
    assert {row["verdict"] for row in document["comparisons"]} <= {"PASS", "INCONCLUSIVE"}
    assert (tmp_path / "j.xml").read_text().startswith("<?xml")


def test_results_are_kept_and_the_comment_written(tmp_path):
    found = invoke(
        DEMO / "demo-bf16-c1",
        "--baseline",
        DEMO,
        "--history",
        tmp_path / "history",
        "--markdown",
        tmp_path / "comment.md",
    )
    assert found.exit_code == 3
    assert "demo-fp32-c8" in found.stdout  # of the baseline, and not measured again
    assert len(list((tmp_path / "history").rglob("*.json"))) == 1
    assert "INCONCLUSIVE" in (tmp_path / "comment.md").read_text().splitlines()[0]


def test_a_file_that_is_no_result_is_named_and_the_rest_compared(tmp_path):
    for path in DEMO.glob("demo-bf16-c1/*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.json").write_text('{"schema_version": 1')
    found = invoke(tmp_path, "--baseline", tmp_path)
    assert "left out:" in found.stdout
    assert "broken.json" in found.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("new",),
        ("--baseline", "old"),
        ("--run", "recipe.yaml"),
        ("--against", "main"),
        ("--aa", "2"),
        ("new", "--run", "recipe.yaml", "--against", "main"),
        ("--run", "recipe.yaml", "--aa", "2", "--junit", "gate.xml"),
        ("new", "--baseline", "old", "--repeats", "3"),
        ("new", "--baseline", "old", "--out", "here"),
    ],
)
def test_combinations_without_a_meaning_are_refused(arguments):
    assert isinstance(invoke(*arguments).exception, UsageError)


def test_nothing_to_read_is_an_error(tmp_path):
    assert isinstance(invoke(tmp_path, "--baseline", DEMO).exception, ResultError)


@pytest.fixture
def sessions(monkeypatch) -> list[tuple[Path, list[str]]]:
    """In place of runs: copies a cell of the demo to every side, and remembers the sessions."""
    made: list[tuple[Path, list[str]]] = []

    def run_session(session, trees, observer) -> dict[str, list[Path]]:
        made.append((session.out, list(trees)))
        folders = {side: session.out / side / "demo-fp32-c1" for side in trees}
        for folder in folders.values():
            shutil.copytree(DEMO / "demo-fp32-c1", folder, dirs_exist_ok=True)
        return {side: sorted(folder.glob("*.json")) for side, folder in folders.items()}

    monkeypatch.setattr(paired_runs, "run_session", run_session)
    return made


def test_a_result_needs_the_new_side_only(sessions, tmp_path):
    found = invoke("--run", RECIPE, "--against", DEMO / "demo-fp32-c1", "--out", tmp_path)
    assert sessions == [(tmp_path, ["new"])]
    assert found.exit_code in (0, 3)
    assert "demo-fp32-c1" in found.stdout


def test_older_results_in_the_directory_are_not_judged(sessions, tmp_path):
    older = tmp_path / "new" / "demo-bf16-c1"
    shutil.copytree(DEMO / "demo-bf16-c1", older)
    found = invoke("--run", RECIPE, "--against", DEMO / "demo-fp32-c1", "--out", tmp_path)
    assert "demo-fp32-c1" in found.stdout
    assert "demo-bf16-c1" not in found.stdout


def test_sessions_of_a_version_with_itself_teach_the_noise_and_are_not_repeated(sessions, tmp_path):
    for _ in range(2):
        found = invoke("--run", RECIPE, "--aa", 3, "--out", tmp_path, "--json")
        assert found.exit_code == 0
        document = json.loads(found.stdout)
        assert sum(document["verdicts"].values()) == document["sessions"] == 3
        assert document["verdicts"]["REGRESSED"] == 0
    assert sessions == [(tmp_path / f"aa-00{i}", ["old", "new"]) for i in (1, 2, 3)]
    names = {noise.metric for noise in read_noise(tmp_path / "noise.json").noise}
    assert {"output_throughput", "tpot_p50", "ttft_p50"} <= names
    known = invoke(DEMO, "--baseline", DEMO, "--noise", tmp_path / "noise.json")
    assert known.exit_code in (0, 3)


def test_a_revision_that_is_not_there_is_an_error(sessions, tmp_path):
    found = invoke("--run", RECIPE, "--against", "no-such-revision", "--out", tmp_path)
    assert isinstance(found.exception, UsageError)
    assert not sessions
