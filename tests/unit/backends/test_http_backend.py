import asyncio
import time
from contextlib import aclosing
from itertools import count
from typing import Any

import pytest

from llmopt.backends.http_backend import HttpBackend
from llmopt.backends.http_options import ServerOptions
from llmopt.backends.profiles.ollama import OLLAMA
from llmopt.backends.profiles.openai import OPENAI, OPENAI_STRICT
from llmopt.backends.protocol import Backend, GenerationParams, TokenEvent
from llmopt.errors import BackendError, UsageError

PROMPT = [5, 6, 7]
NUMBERS = count()


def start(mock: Any, behaviour: dict[str, Any] | None = None, **options: Any) -> HttpBackend:
    fields = {"ttft_s": 0.0, "tpot_s": 0.0} | (behaviour or {})
    model = mock.add(f"model-{next(NUMBERS)}", **fields)
    backend = HttpBackend(OPENAI, ServerOptions(mock.url, model, **options))
    backend.start()
    return backend


async def collect(backend: Backend, prompt: Any = PROMPT, max_tokens: int = 8) -> list[TokenEvent]:
    return [event async for event in backend.stream(prompt, GenerationParams(max_tokens))]


def stream(mock: Any, behaviour: dict[str, Any] | None = None, **options: Any) -> list[TokenEvent]:
    backend = start(mock, behaviour, **options)
    return backend.drive(lambda: asyncio.run(collect(backend)))


def test_tokens_come_one_by_one(mock):
    events = stream(mock)
    assert [event.num_tokens for event in events] == [1] * 8 + [0, 0]
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]
    assert {event.num_prompt_tokens for event in events} == {3}


def test_several_tokens_in_an_event_are_counted(mock):
    events = stream(mock, {"tokens_per_event": 3})
    assert [event.num_tokens for event in events if event.num_tokens] == [1, 3, 3, 1]


def test_a_total_alone_is_handed_on(mock):
    events = stream(mock, {"tokens_per_event": 3, "knows_each_usage": False})
    assert [event.num_tokens for event in events if event.num_tokens] == [1, 1, 1, 1]
    assert [event.total_tokens for event in events if event.total_tokens] == [8]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize(
    "behaviour",
    [
        {"cut_bytes": 1, "text": " 日本🎉"},
        {"cut_bytes": 1, "line_end": "\r\n", "text": "é"},
        {"line_end": "\r", "cached_tokens": 2},
        {"role_first_s": 0.0, "ping_every_s": 0.001, "tpot_s": 0.004},
        {"usage": "never"},
        {"finish_with_last": True, "tokens_per_event": 3},
        {"usage": "last chunk", "knows_each_usage": False},
    ],
    ids=str,
)
def test_the_tokens_are_the_same_however_they_are_sent(mock, behaviour, endpoint):
    backend = start(mock, behaviour, endpoint=endpoint)
    events = backend.drive(lambda: asyncio.run(collect(backend, "three words here")))
    totals = [event.total_tokens for event in events if event.total_tokens is not None]
    assert (totals or [sum(event.num_tokens for event in events)]) == [8]
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]
    cached = [e.num_cached_tokens for e in events if e.num_cached_tokens is not None]
    assert set(cached) == ({2} if "cached_tokens" in behaviour else set())


def test_role_first_is_an_event_without_tokens(mock):
    assert stream(mock, {"role_first_s": 0.0})[0] == TokenEvent(0, num_prompt_tokens=3)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"fault": "status", "status": 429}, "429 Mock: out of luck"),
        ({"fault": "status", "status": 500}, "500 Mock: out of luck"),
        ({"refuses_field": "ignore_eos"}, "400 Mock: Extra inputs are not permitted: ignore_eos"),
        ({"fault": "error event"}, "broke off: the engine fell over"),
        ({"fault": "drop"}, "closed the connection in the middle"),
        ({"fault": "malformed"}, "not JSON"),
        ({"fault": "no finish"}, "without a finish reason"),
        ({"fault": "not a stream"}, "no event stream: .*all at once"),
        ({"fault": "not http"}, "not HTTP"),
        ({"fault": "close before answer"}, "without an answer"),
        ({"knows_each_usage": True, "output_count_error": -2}, "counts -1 tokens after 0"),
    ],
    ids=str,
)
def test_what_a_server_does_wrong_is_an_error_of_the_request(mock, behaviour, reason):
    with pytest.raises(BackendError, match=reason):
        stream(mock, behaviour)


def test_tokens_before_a_fault_are_handed_on(mock):
    backend = start(mock, {"fault": "drop", "fault_after": 5})

    async def main() -> int:
        found = 0
        try:
            async for event in backend.stream(PROMPT, GenerationParams(8)):
                found += event.num_tokens
        except BackendError:
            return found
        pytest.fail("the drop was not noticed")

    assert backend.drive(lambda: asyncio.run(main())) == 5


def test_a_fault_spoils_no_other_request(mock):
    backend = start(mock, {"fault": "drop", "fault_every": 3})

    async def main() -> list[Any]:
        return [await asyncio.gather(collect(backend), return_exceptions=True) for _ in range(7)]

    outcomes = backend.drive(lambda: asyncio.run(main()))
    failed = [isinstance(outcome, BackendError) for (outcome,) in outcomes]
    assert failed == [False, False, True, False, False, True, False]


def test_a_connection_is_used_again_and_its_number_has_no_limit(mock):
    backend = start(mock, {"ttft_s": 0.2})

    async def main() -> list[float]:
        opened = []
        for _ in range(2):
            await asyncio.gather(*(collect(backend) for _ in range(150)))
            opened.append(backend.stats()["num_connections"])
        return opened

    assert backend.drive(lambda: asyncio.run(main())) == [150, 150]


def test_a_connection_that_the_server_has_closed_is_not_used_again(mock):
    backend = start(mock, {"closes_after": True})

    async def main() -> None:
        for _ in range(3):
            await collect(backend)
            await asyncio.sleep(0.05)

    backend.drive(lambda: asyncio.run(main()))
    assert backend.stats() == {"num_connections": 3}


def test_a_proxy_is_not_used(mock, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert stream(mock)[-1].finish_reason is None


def test_a_second_loop_opens_connections_of_its_own(mock):
    backend = start(mock)
    for _ in range(2):
        backend.drive(lambda: asyncio.run(collect(backend)))
    assert backend.stats() == {"num_connections": 2}


def test_closing_the_stream_ends_the_request_at_the_server(mock):
    backend = start(mock, {"tpot_s": 0.01})
    model = str(backend.settings["model"])

    async def main() -> list[TokenEvent]:
        async with aclosing(backend.stream(PROMPT, GenerationParams(500))) as events:
            await anext(events)
        return await collect(backend)  # which must not find what is left of the other answer

    assert sum(event.num_tokens for event in backend.drive(lambda: asyncio.run(main()))) == 8
    deadline = time.monotonic() + 10
    while not (entry := mock.log(model)[0])["aborted"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert entry["aborted"]
    assert 1 <= sum(entry["token_counts"]) < 500


def test_silence_does_not_hold_back_a_cancellation(mock):
    backend = start(mock, {"fault": "hang"})

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await collect(backend)

    backend.drive(lambda: asyncio.run(main()))


def test_the_key_reaches_the_server_and_not_the_settings(mock):
    backend = start(mock, api_key="secret-key")
    backend.drive(lambda: asyncio.run(collect(backend)))
    model = str(backend.settings["model"])
    assert mock.log(model)[0]["headers"]["authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(backend.settings)


def test_start_asks_for_the_model_and_the_version(mock):
    backend = start(mock)
    assert (backend.name, backend.version) == ("openai", "1.2.3")
    with pytest.raises(BackendError, match="asked was: absent"):
        HttpBackend(OPENAI, ServerOptions(mock.url, "absent")).start()
    with pytest.raises(BackendError, match="asked was: None"):
        HttpBackend(OPENAI, ServerOptions(mock.url)).start()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://h", "http://", "http://h:x", "http://u@h"]
)
def test_an_address_that_is_none(url):
    with pytest.raises(UsageError, match="address"):
        HttpBackend(OPENAI, ServerOptions(url)).start()


def test_v1_at_the_end_of_the_address_makes_no_difference(mock):
    backend = HttpBackend(OPENAI, ServerOptions(f"{mock.url}/v1/", mock.add("with-v1", ttft_s=0.0)))
    backend.start()
    assert len(backend.drive(lambda: asyncio.run(collect(backend)))) == 10


def test_nobody_at_the_address():
    with pytest.raises(BackendError, match="no list of models"):
        HttpBackend(OPENAI, ServerOptions("http://127.0.0.1:9")).start()


def test_a_server_that_went_away(mock):
    backend = start(mock)
    backend._connections._url = backend._connections._url._replace(netloc="127.0.0.1:9")
    with pytest.raises(BackendError, match="no connection to"):
        backend.drive(lambda: asyncio.run(collect(backend)))


def test_it_can_be_stopped_twice_and_started_again(mock):
    backend: Backend = start(mock)
    backend.stop()
    backend.stop()
    backend.start()
    events = backend.drive(lambda: asyncio.run(collect(backend)))
    assert sum(event.num_tokens for event in events) == 8


def test_a_strict_server_is_not_asked_for_more_than_it_knows(mock):
    fields = {"ttft_s": 0.0, "tpot_s": 0.0, "refuses_field": "ignore_eos"}
    model = mock.add(f"model-{next(NUMBERS)}", **fields)
    backend = HttpBackend(OPENAI_STRICT, ServerOptions(mock.url, model))
    backend.start()
    events = backend.drive(lambda: asyncio.run(collect(backend)))
    assert [event.total_tokens for event in events if event.total_tokens] == [8]


def test_further_fields_are_sent_with_every_request(mock):
    backend = start(mock, extra_body={"top_k": 1, "stream_options": {"more": 2}})
    backend.drive(lambda: asyncio.run(collect(backend)))
    body = mock.log(str(backend.model))[0]["body"]
    assert body["top_k"] == 1
    assert body["stream_options"]["more"] == 2
    assert body["stream_options"]["include_usage"]


def test_token_ids_for_a_server_that_takes_text(mock):
    model = mock.add(f"model-{next(NUMBERS)}", ttft_s=0.0, tpot_s=0.0)
    options = ServerOptions(mock.url, model, endpoint="chat")
    decoding = HttpBackend(OPENAI, options, decode=lambda ids: " ".join(map(str, ids)))
    decoding.start()
    decoding.drive(lambda: asyncio.run(collect(decoding)))
    assert mock.log(model)[0]["body"]["messages"][0]["content"] == "5 6 7"
    assert decoding.settings["prompt_as"] == "text"
    plain = HttpBackend(OPENAI, options)
    plain.start()
    with pytest.raises(UsageError, match="these are token ids"):
        plain.drive(lambda: asyncio.run(collect(plain)))


def test_a_server_of_another_kind_is_found_out(mock):
    with pytest.raises(BackendError, match="no list of models"):
        HttpBackend(OLLAMA, ServerOptions(mock.url)).start()


def test_what_was_generated_is_handed_on(mock):
    assert "".join(event.text for event in stream(mock, {"text": " é"})) == " é" * 8
