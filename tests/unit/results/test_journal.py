from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.results.journal import drop_partial, fingerprint, load_partial, save_partial
from llmopt.results.schema import CellResult, PartialCell


def test_a_journal_grows_and_is_dropped(
    tmp_path: Path, make_result: Callable[..., CellResult]
) -> None:
    (run,) = make_result().runs
    partial = PartialCell("print", "cell", (run,), None)
    grown = replace(partial, runs=(run, replace(run, repeat=1)))
    save_partial(tmp_path, partial)
    save_partial(tmp_path, grown)
    assert load_partial(tmp_path, "cell", "print") == grown
    drop_partial(tmp_path, "cell")
    drop_partial(tmp_path, "cell")
    assert load_partial(tmp_path, "cell", "print") is None


def test_a_stale_journal_is_ignored(tmp_path: Path) -> None:
    save_partial(tmp_path, PartialCell("old", "cell", (), None))
    assert load_partial(tmp_path, "cell", "new") is None


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 1}', '{"schema_version": 9}'])
def test_a_damaged_journal_is_ignored(tmp_path: Path, content: str) -> None:
    path = save_partial(tmp_path, PartialCell("print", "cell", (), None))
    path.write_text(content)
    assert load_partial(tmp_path, "cell", "print") is None


def test_the_fingerprint_changes_with_the_cell_and_with_the_machine(
    make_result: Callable[..., CellResult],
) -> None:
    environment = make_result().environment
    one = fingerprint({"a": 1, "b": 2}, environment)
    assert one == fingerprint({"b": 2, "a": 1}, environment)
    assert one != fingerprint({"a": 1, "b": 3}, environment)
    assert one != fingerprint({"a": 1, "b": 2}, replace(environment, num_threads=1))
