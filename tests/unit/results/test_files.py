import errno
import os
from pathlib import Path

import pytest

from llmopt.errors import OutputError, ResultError
from llmopt.results import files


def fail_with(code: int):
    def replace(source: str, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    return replace


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("mine")
    assert files.write_new(path, {"x": 1}) is False
    assert path.read_text() == "mine"


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    files.write(path, {"x": [1, 2]})
    files.write(path, {"x": [3], "y": "×"})
    assert files.read(path) == {"x": [3], "y": "×"}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"No space left to write .*a\.json\. Free some space"),
        (errno.EROFS, r"Not allowed to write .*a\.json\. Choose a directory"),
        (errno.EIO, r"a\.json cannot be written \(Input/output error\)"),
    ],
)
def test_a_failed_write_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    monkeypatch.setattr(os, "replace", fail_with(code))
    with pytest.raises(OutputError, match=message):
        files.write_new(tmp_path / "a.json", {"x": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="a file is in the way"):
        files.write(tmp_path / "out" / "cell" / "a.json", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole JSON file"),
        (b'{"x": [1, 2', "not a whole JSON file"),
        (b'{"x": NaN}', "not a whole JSON file"),
        (b"\xff\xfe{}", "not a whole JSON file"),
        (b"[" * 100_000, "not a whole JSON file"),
        (b"[1, 2]", "not an llmopt result file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ResultError, match=f"bad.json is {message}"):
        files.read(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"There is no file or directory .*none\.json"):
        files.read(tmp_path / "none.json")
