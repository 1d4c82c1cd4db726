import pytest

from llmopt.formats.staging import remove_stale, staged_directory


@pytest.mark.parametrize("name", ["Llama-3", "[ab]*", "out"])
def test_only_what_was_left_of_this_output_is_removed(tmp_path, name):
    ours, theirs = tmp_path / name, tmp_path / f"{name}.1-8B-w4"
    other = tmp_path / "a1"
    with staged_directory(ours) as stale, staged_directory(theirs) as live:
        with staged_directory(other) as another:
            remove_stale(ours)
            assert not stale.exists()
            assert live.exists()
            assert another.exists()
        stale.mkdir()  # for the end of its own context
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in (ours, theirs, other)
    )
