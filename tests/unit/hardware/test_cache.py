"""The place of the cache."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmopt.errors import OutputError
from llmopt.hardware.cache import cache_directory, kernels_directory


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


@pytest.mark.parametrize("place", [cache_directory, kernels_directory])
def test_without_a_home_one_sentence_says_what_to_set(
    place: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "LLMOPT_CACHE", "LLMOPT_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(OutputError, match=r"that ~/\.cache/llmopt is in is unknown\. Set HOME, or"):
        place()
    monkeypatch.setenv("LLMOPT_CACHE", "/a")
    assert place().is_relative_to("/a")
