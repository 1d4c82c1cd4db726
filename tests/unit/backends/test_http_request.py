import json

import pytest

from llmopt.backends.http_options import ServerOptions, read_api_key
from llmopt.backends.http_request import request_body, request_path
from llmopt.backends.protocol import GenerationParams
from llmopt.errors import UsageError

PARAMS = GenerationParams(max_tokens=5, seed=3)
OPTIONS = ServerOptions("http://h", api_key="secret-key")


def test_token_ids_and_everything_that_decides_the_answer():
    assert json.loads(request_body(OPTIONS, "m", (1, 2), PARAMS)) == {
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 3,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    assert request_path(OPTIONS) == "/v1/completions"


def test_a_server_is_only_asked_what_it_understands():
    plain = ServerOptions("http://h", ignores_eos=False, reports_usage=False)
    body = json.loads(request_body(plain, "m", "text", GenerationParams(5)))
    assert body.keys() == {"model", "prompt", "max_tokens", "temperature", "stream"}
    once = ServerOptions("http://h", reports_each_usage=False)
    body = json.loads(request_body(once, "m", "text", GenerationParams(5, ignore_eos=False)))
    assert body["stream_options"] == {"include_usage": True}
    assert "ignore_eos" not in body


def test_chat_takes_text_only():
    chat = ServerOptions("http://h", endpoint="chat", extra_body={"top_k": 1})
    body = json.loads(request_body(chat, "m", "hello", PARAMS))
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert body["top_k"] == 1
    assert request_path(chat) == "/v1/chat/completions"
    with pytest.raises(UsageError, match="token ids"):
        request_body(chat, "m", [1], PARAMS)


def test_the_key_is_sent_and_shown_nowhere():
    assert OPTIONS.header["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(OPTIONS) + repr(OPTIONS.settings)
    assert "Authorization" not in ServerOptions("http://h").header


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert read_api_key("SOME_KEY") is None
    monkeypatch.setenv("SOME_KEY", " abc\n")
    assert read_api_key("SOME_KEY") == "abc"
    monkeypatch.setenv("SOME_KEY", "a\r\nHost: elsewhere")
    with pytest.raises(UsageError, match="SOME_KEY"):
        read_api_key("SOME_KEY")
