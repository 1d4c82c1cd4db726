"""The place of the cache."""

from pathlib import Path

import pytest

from llmopt.hardware.cache import cache_directory


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LLMOPT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/llmopt"),
        ({"LLMOPT_CACHE": ""}, "/home/me/.cache/llmopt"),
        ({"LLMOPT_CACHE": "~/mine"}, "/home/me/mine"),
    ],
)
def test_variables_decide_in_order(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLMOPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)
