from dataclasses import replace

import pytest

from llmopt.bench.paired_runs import Session
from llmopt.bench.session_mark import is_finished, mark_finished
from llmopt.errors import UsageError


@pytest.fixture
def session(tmp_path) -> Session:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: tiny\n")
    return Session(recipe, tmp_path / "aa-001", 3)


def test_a_session_is_finished_once_it_is_marked(session):
    assert not is_finished(session, None)
    mark_finished(session, None)
    assert is_finished(session, None)


@pytest.mark.parametrize("change", [{"repeats": 4}, {"device": "cuda"}, "recipe", "commit"])
def test_another_session_is_not_taken_for_it(session, change):
    mark_finished(session, None)
    commit = "0123" if change == "commit" else None
    if change == "recipe":
        session.recipe.write_text("name: other\n")
    if isinstance(change, dict):
        session = replace(session, **change)
    with pytest.raises(UsageError, match="a session of another recipe"):
        is_finished(session, commit)
