import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.errors import OutputError, ResultError
from llmopt.results.journal import save_partial
from llmopt.results.schema import CellResult, PartialCell
from llmopt.results.store import read_result, read_results, write_once

MakeResult = Callable[..., CellResult]


def test_results_are_numbered_and_never_overwritten(
    tmp_path: Path, make_result: MakeResult
) -> None:
    first = write_once(tmp_path, make_result())
    content = first.read_bytes()
    second = write_once(tmp_path, make_result(error="again"))
    assert first == tmp_path / "demo-fp32-c1" / "0001-0123456.json"
    assert second.name == "0002-0123456.json"
    assert first.read_bytes() == content
    assert read_result(first) == make_result()


def test_the_number_goes_on_after_the_highest_of_any_commit(
    tmp_path: Path, make_result: MakeResult
) -> None:
    folder = tmp_path / "demo-fp32-c1"
    folder.mkdir()
    (folder / "0041-abcdef0.json").write_text("{}")
    (folder / "9-notes.txt").write_text("")
    result = make_result()
    no_git = replace(result, environment=replace(result.environment, git_sha=None))
    assert write_once(tmp_path, no_git).name == "0042-nogit.json"


def test_a_name_taken_in_the_meantime_is_skipped(
    tmp_path: Path, make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = write_once(tmp_path, make_result())
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))  # as if listed before
    assert write_once(tmp_path, make_result()).name == "0002-0123456.json"
    assert read_result(taken) == make_result()


def test_an_unwritable_directory_is_one_sentence(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "demo-fp32-c1").write_text("a file")
    with pytest.raises(OutputError, match="a file is in the way"):
        write_once(tmp_path, make_result())


def test_good_results_are_read_though_others_are_bad(
    tmp_path: Path, make_result: MakeResult
) -> None:
    good = write_once(tmp_path, make_result())
    old = json.loads(good.read_text()) | {"schema_version": 0}
    (tmp_path / "cut.json").write_text(good.read_text()[:200])
    (tmp_path / "foreign.json").write_text('{"hello": 1}')
    (tmp_path / "old.json").write_text(json.dumps(old))
    save_partial(tmp_path, PartialCell("f", "demo-bf16-c1", (), None))
    results, errors = read_results([tmp_path, good, tmp_path / "none"])
    assert results == [make_result()]
    lines = [str(error) for error in errors]
    assert len(lines) == 4
    assert all("\n" not in line for line in lines)
    assert "cut.json is not a whole JSON file" in lines[0]
    assert "foreign.json is not an llmopt result file" in lines[1]
    assert "old.json has the result schema 0; this llmopt reads 1" in lines[2]
    assert "There is no file or directory" in lines[3]


def test_a_directory_without_results_is_named(tmp_path: Path) -> None:
    results, errors = read_results([tmp_path])
    assert results == []
    assert "holds no result files" in str(errors[0])


def test_checkpoints_among_the_results_are_passed_over(
    tmp_path: Path, make_result: MakeResult
) -> None:
    write_once(tmp_path, make_result())
    checkpoint = tmp_path / "checkpoints" / "model"
    (checkpoint / "extra").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "extra/more.json"):
        (checkpoint / name).write_text("{}")
    gguf = tmp_path / "checkpoints" / "gguf"
    gguf.mkdir()
    for name in ("quantization.json", "quantization-run.json"):
        (gguf / name).write_text("{}")
    assert read_results([tmp_path]) == ([make_result()], [])


def test_a_journal_is_no_result(tmp_path: Path) -> None:
    path = save_partial(tmp_path, PartialCell("f", "demo-bf16-c1", (), None))
    with pytest.raises(ResultError, match="the journal of an unfinished cell"):
        read_result(path)


def test_what_a_killed_session_left_in_a_hidden_folder_is_no_result(
    tmp_path: Path, make_result: MakeResult
) -> None:
    write_once(tmp_path / ".parts-1" / "old", make_result())
    assert read_results([tmp_path])[0] == []
    write_once(tmp_path, make_result())
    assert len(read_results([tmp_path])[0]) == 1
