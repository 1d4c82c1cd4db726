import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llmopt.bench import paired_runs, worktree
from llmopt.bench.observer import SilentObserver
from llmopt.bench.paired_runs import NEW, OLD, Session, merge, run_session
from llmopt.errors import ResultError, UsageError
from llmopt.results.codec import from_json, to_json
from llmopt.results.schema import CellResult
from llmopt.results.store import read_results

RESULT = sorted(Path(__file__).parents[3].glob("results/demo/demo-rtn-w4g64-c8/*.json"))[0]
RECIPE = """
name: tiny
base: {model: m, dtype: float32}
targets: []
loads:
  - {concurrency: 2, num_requests: 2, prompt_tokens: 8, output_tokens: 4}
repeats: 4
until_ci: 0.03
quality: {num_windows: 4}
"""


@pytest.fixture
def result() -> CellResult:
    """A real cell with three runs."""
    return from_json(CellResult, json.loads(RESULT.read_text()), "demo")


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe of one cell, with quality."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


class Runs:
    """In place of processes: writes what a run would, and remembers the calls."""

    def __init__(self, result: CellResult) -> None:
        self.result = result
        self.calls: list[tuple[str, str]] = []
        self.recipes: list[dict[str, object]] = []
        self.status = 0
        self.interrupt_at = -1

    def __call__(self, command, *, variables, log, on_line) -> int:
        folder = Path(command[command.index("--out") + 1])
        side, name = folder.parent.name, folder.name
        self.calls.append((side, name))
        self.recipes.append(yaml.safe_load(Path(command[5]).read_text()))
        assert variables["PYTHONPATH"].split(os.pathsep)[0].endswith(side)
        if len(self.calls) - 1 == self.interrupt_at:
            raise KeyboardInterrupt
        on_line("the last line")
        if self.status == 0:
            is_first = name == "first"
            run = replace(self.result.runs[0], seed=99 if is_first else int(name))
            one = replace(
                self.result,
                cell_id="tiny-fp32-c2",
                runs=(run,),
                quality=self.result.quality if is_first else None,
            )
            target = folder / "tiny-fp32-c2" / "0001-x.json"
            target.parent.mkdir(parents=True)
            target.write_text(json.dumps(to_json(one)))
        return self.status


@pytest.fixture
def runs(result, monkeypatch) -> Runs:
    """Fake processes."""
    fake = Runs(result)
    monkeypatch.setattr(paired_runs, "follow_process", fake)
    monkeypatch.setattr(paired_runs, "_require_source", lambda side, tree: None)
    return fake


def trees(tmp_path) -> dict[str, Path]:
    return {OLD: tmp_path / "src" / OLD, NEW: tmp_path / "src" / NEW}


def test_the_sides_take_turns_abba(runs, recipe, tmp_path):
    out = tmp_path / "out"
    of_the_user = out / "parts" / "file"
    of_the_user.parent.mkdir(parents=True)
    of_the_user.touch()
    files = run_session(Session(recipe, out, 4), trees(tmp_path), SilentObserver())
    assert [name for _, name in runs.calls[:2]] == ["first", "first"]
    assert [side for side, _ in runs.calls[2:]] == [OLD, NEW, NEW, OLD, OLD, NEW, NEW, OLD]
    assert [int(name) for _, name in runs.calls[2:]] == [1, 1, 2, 2, 3, 3, 4, 4]
    for side in (OLD, NEW):
        (found,), errors = read_results([out / side])
        assert not errors
        assert [run.repeat for run in found.runs] == [0, 1, 2, 3]
        assert [run.seed for run in found.runs] == [1, 2, 3, 4]  # the first process does not count
        assert found.quality is not None
        assert len(found.summary.run_output_throughput) == 4
        assert files[side] == list((out / side).rglob("*.json"))
    assert of_the_user.exists()
    assert not list(out.glob(".parts-*"))


def test_each_process_makes_one_run_and_quality_is_measured_once(runs, recipe, tmp_path):
    run_session(Session(recipe, tmp_path / "out", 2), trees(tmp_path), SilentObserver())
    assert [document["repeats"] for document in runs.recipes] == [1] * 6
    with_quality = ["quality" in document for document in runs.recipes]
    assert with_quality == [True, True, False, False, False, False]
    assert all("until_ci" not in document for document in runs.recipes)
    assert "warmup_requests" not in runs.recipes[0]  # nothing that the user did not write


def test_configs_of_random_weights_are_found_beside_the_recipe(runs, recipe, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    recipe.write_text(RECIPE.replace("model: m", "model: dummy:config.json"))
    run_session(Session(recipe, tmp_path / "out", 2), trees(tmp_path), SilentObserver())
    assert runs.recipes[0]["base"]["model"] == f"dummy:{tmp_path / 'config.json'}"


def test_one_side_alone(runs, recipe, tmp_path):
    run_session(Session(recipe, tmp_path / "out", 3), {NEW: tmp_path / NEW}, SilentObserver())
    assert runs.calls == [(NEW, "first"), (NEW, "0001"), (NEW, "0002"), (NEW, "0003")]
    assert not (tmp_path / "out" / OLD).exists()


def test_a_side_that_cannot_be_measured_is_named_with_its_last_line(runs, recipe, tmp_path):
    runs.status = 2
    with pytest.raises(ResultError, match=r"old side could not be measured: the last line"):
        run_session(Session(recipe, tmp_path / "out", 2), trees(tmp_path), SilentObserver())


def test_an_interrupt_leaves_nothing_behind(runs, recipe, tmp_path):
    runs.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        run_session(Session(recipe, tmp_path / "out", 2), trees(tmp_path), SilentObserver())
    assert list((tmp_path / "out").rglob("*.json")) == []


def test_merging_the_single_runs_of_a_cell_gives_the_cell(result):
    singles = [replace(result, runs=(run,), summary=None) for run in result.runs]
    merged = merge(replace(result, runs=()), singles)
    assert merged.runs == result.runs
    assert merged.summary.run_output_throughput == result.summary.run_output_throughput
    assert merged.summary.tpot_ms.p50 == result.summary.tpot_ms.p50


def test_a_cell_that_failed_once_has_failed(result):
    failed = replace(result, runs=(), summary=None, error="no memory")
    assert merge(result, [result, failed, result]).error == "no memory"
    assert merge(failed, [result]).runs == ()


def test_a_search_is_refused(recipe, runs, tmp_path):
    recipe.write_text(
        RECIPE.replace("concurrency: 2,", "kind: poisson, concurrency: 2, slo: 'ttft<1s',").replace(
            "num_requests: 2", "num_requests: 8"
        )
    )
    with pytest.raises(UsageError, match="searches a rate"):
        run_session(Session(recipe, tmp_path / "out", 2), trees(tmp_path), SilentObserver())


def test_a_tree_that_is_not_imported_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the old side would import llmopt from"):
        paired_runs._require_source(OLD, tmp_path)


def git(root: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(root), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two commits; the working tree is dirty."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    for text in ("first", "second"):
        (root / "file").write_text(text)
        git(root, "add", "file")
        git(root, "commit", "-q", "-m", text)
    (root / "file").write_text("dirty")
    return root


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_worktree_is_the_revision_and_gone_afterwards(repository, error):
    try:
        with worktree.worktree(repository, "HEAD~1") as tree:
            assert (tree / "file").read_text() == "first"
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        assert error is not None
    assert not tree.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert (repository / "file").read_text() == "dirty"


@pytest.mark.parametrize("revision", ["no-such", "--help", ""])
def test_a_revision_that_is_not_there_is_named(repository, revision):
    with (
        pytest.raises(UsageError, match="neither a result nor a revision"),
        worktree.worktree(repository, revision),
    ):
        pass


def test_without_loads_there_is_quality_only(runs, recipe, tmp_path):
    lines = [
        line for line in RECIPE.splitlines() if "loads" not in line and "concurrency" not in line
    ]
    recipe.write_text("\n".join(lines))
    run_session(Session(recipe, tmp_path / "out", 4), trees(tmp_path), SilentObserver())
    assert runs.calls == [(OLD, "first"), (NEW, "first")]
