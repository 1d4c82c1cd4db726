import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.http_chunks import ChunkReader, error_message
from llmopt.backends.protocol import TokenEvent
from llmopt.backends.sse import ServerSentEvent
from llmopt.errors import BackendError


def chunk(text: str | None = None, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": reason}]
    return {"choices": choices} | fields


def usage(generated: int, prompt: int = 7, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": generated, **more}


def read(*chunks: dict[str, Any] | str) -> list[TokenEvent]:
    reader = ChunkReader()
    events = [
        reader.read(ServerSentEvent(c if isinstance(c, str) else json.dumps(c))) for c in chunks
    ]
    reader.close()
    return [event for event in events if event is not None]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_usage_of_each_chunk_counts_its_tokens(counts):
    totals = [sum(counts[: i + 1]) for i in range(len(counts))]
    events = read(
        *(
            chunk("abc" * count, usage=usage(total))
            for count, total in zip(counts, totals, strict=True)
        ),
        chunk("", "length", usage=usage(totals[-1])),
        chunk(usage=usage(totals[-1])),
        "[DONE]",
    )
    assert [event.num_tokens for event in events] == [*counts, 0, 0]
    assert {(event.total_tokens, event.is_guess) for event in events} == {(None, False)}


def test_tokens_without_text_are_counted_by_the_usage():
    """Half of a character, or a special token, has no text."""
    events = read(
        chunk("", usage=usage(1)), chunk("é", usage=usage(2)), chunk("", "stop", usage=usage(2))
    )
    assert [event.num_tokens for event in events] == [1, 1, 0]


def test_without_counts_an_event_with_text_is_one_token_until_the_total_comes():
    events = read(chunk(""), chunk("a b"), chunk(" c"), chunk("", "length"), chunk(usage=usage(5)))
    assert [event.num_tokens for event in events] == [0, 1, 1, 0, 0]
    assert [event.total_tokens for event in events] == [None] * 4 + [5]
    assert [event.finish_reason for event in events] == [None, None, None, "length", None]
    assert [event.is_guess for event in events] == [False, True, True, False, False]
    assert [event.has_choice for event in events] == [True] * 4 + [False]


def test_total_on_the_last_chunk_with_text():
    events = read(chunk("a"), chunk("b", "length", usage=usage(9)))
    assert (events[-1].num_tokens, events[-1].total_tokens) == (1, 9)


def test_never_a_count():
    events = read(chunk("a"), chunk("b"), chunk("", "stop", usage=None))
    assert [(e.num_tokens, e.total_tokens) for e in events] == [(1, None), (1, None), (0, None)]


def test_usage_says_what_the_prompt_was():
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    event = read(chunk("a", "stop", usage=usage(1, 12, **details)))[0]
    assert (event.num_prompt_tokens, event.num_cached_tokens) == (12, 4)
    event = read(chunk("a", "stop", usage=usage(1, 12, prompt_tokens_details=None)))[0]
    assert event.num_cached_tokens is None


def test_llama_cpp_timings():
    first = {"predicted_n": 1, "prompt_ms": 20.0}
    last = {"predicted_n": 3, "prompt_ms": 20.0, "predicted_ms": 90, "predicted_per_second": 33.0}
    events = read(chunk("a", timings=first), chunk("bc", "stop", timings=last))
    assert [event.num_tokens for event in events] == [1, 2]
    assert events[-1].server_timings_s == {"prompt_s": 0.02, "predicted_s": 0.09}


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning"])
def test_deltas_of_a_chat(name):
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    said = {"choices": [{"delta": {name: "hm"}}]}
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    assert [event.num_tokens for event in read(role, said, end)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"choices": [', "not JSON"),
        ("[1]", "not an object"),
        ('{"error": {"message": "out of memory", "code": 500}}', "broke off: out of memory"),
        ('{"object": "error", "message": "too long"}', "broke off: too long"),
    ],
)
def test_an_event_that_is_no_chunk_is_an_error(data, reason):
    with pytest.raises(BackendError, match=reason):
        read(data)


def test_an_event_of_type_error_is_one():
    with pytest.raises(BackendError, match="broke off"):
        ChunkReader().read(ServerSentEvent('{"text": "x"}', "error"))


def test_a_stream_without_a_finish_reason_has_failed():
    with pytest.raises(BackendError, match="without a finish reason"):
        read(chunk("a"), "[DONE]")


def test_a_count_that_goes_back_is_an_error():
    with pytest.raises(BackendError, match="counts 2 tokens after 3"):
        read(chunk("a", usage=usage(3)), chunk("b", usage=usage(2)))


@pytest.mark.parametrize("odd", [{"choices": 3}, {"choices": [None]}, {"usage": [1], "timings": 2}])
def test_fields_of_another_type_bring_nothing(odd):
    event = ChunkReader().read(ServerSentEvent(json.dumps(odd)))
    assert event == TokenEvent(0, has_choice=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "no such model"}}', "no such model"),
        ('{"error": "busy"}', "busy"),
        ('{"detail": "Extra inputs"}', "Extra inputs"),
        ('{"detail": [{"msg": "x"}]}', '[{"msg": "x"}]'),
        ("<html>502</html>", "<html>502</html>"),
        ("y" * 300, "y" * 200 + " ..."),
    ],
)
def test_error_messages(body, message):
    assert error_message(body) == message
