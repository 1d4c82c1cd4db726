import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.http_options import ServerOptions, read_api_key
from llmopt.backends.http_request import encode, merge, openai_request
from llmopt.backends.profiles.openai import OPENAI, OPENAI_STRICT
from llmopt.backends.profiles.profile import CompletionRequest
from llmopt.backends.protocol import GenerationParams
from llmopt.errors import UsageError

PARAMS = GenerationParams(max_tokens=5, seed=3)
OPTIONS = ServerOptions("http://h", api_key="secret-key")
FIELDS = st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3)


def test_token_ids_and_everything_that_decides_the_answer():
    request = OPENAI.completion(CompletionRequest("m", (1, 2), PARAMS))
    assert json.loads(encode(request.body)) == {
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 3,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    assert request.path == "/v1/completions"


def test_a_strict_server_is_only_asked_what_the_standard_knows():
    request = OPENAI_STRICT.completion(CompletionRequest("m", "text", GenerationParams(5)))
    names = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert request.body.keys() == names
    assert request.body["stream_options"] == {"include_usage": True}


def test_the_end_of_text_counts_where_it_is_asked_to():
    params = GenerationParams(5, ignore_eos=False)
    assert "ignore_eos" not in OPENAI.completion(CompletionRequest("m", "text", params)).body


def test_chat_takes_text_only():
    request = openai_request(CompletionRequest("m", "hello", PARAMS, "chat"), {})
    assert request.body["messages"] == [{"role": "user", "content": "hello"}]
    assert request.path == "/v1/chat/completions"
    with pytest.raises(UsageError, match="token ids"):
        openai_request(CompletionRequest("m", [1], PARAMS, "chat"), {})


def test_objects_are_merged_and_everything_else_is_replaced():
    body = {"options": {"num_ctx": 1, "seed": 2}, "stream": True}
    assert merge(body, {"options": {"seed": 3}, "stream": False, "raw": {"a": 1}}) == {
        "options": {"num_ctx": 1, "seed": 3},
        "stream": False,
        "raw": {"a": 1},
    }
    assert merge({"stop": ["a"]}, {"stop": {"b": 1}}) == {"stop": {"b": 1}}


@given(FIELDS, FIELDS)
def test_merging_keeps_all_and_prefers_the_second(first, second):
    assert merge({"o": first, **first}, {"o": second, **second}) == {
        "o": first | second,
        **(first | second),
    }


def test_the_key_is_sent_and_shown_nowhere():
    assert OPTIONS.header["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(OPTIONS) + repr(OPTIONS.settings)
    assert "Authorization" not in ServerOptions("http://h").header


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v3"])
def test_the_version_of_the_interface_is_no_part_of_the_address(end):
    assert ServerOptions(f"http://h:1/path{end}").root == "http://h:1/path"


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert read_api_key("SOME_KEY") is None
    monkeypatch.setenv("SOME_KEY", " abc\n")
    assert read_api_key("SOME_KEY") == "abc"
    monkeypatch.setenv("SOME_KEY", "a\r\nHost: elsewhere")
    with pytest.raises(UsageError, match="SOME_KEY"):
        read_api_key("SOME_KEY")
