from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.sse import ServerSentEvent, SSEParser

STREAM = (
    ": a ping\n\n"
    'data: {"text": "naïve 日本 🎉"}\n\n'
    "event: error\ndata:no space\n\n"
    "id: 7\nretry: 10\ndata\n\n"
    "data: first line\ndata:  second line\n\n"
    "event: without data\n\n"
    "unknown: field\ndata: [DONE]\n\n"
    "data: never finished\n"
)
EVENTS = [
    ServerSentEvent('{"text": "naïve 日本 🎉"}'),
    ServerSentEvent("no space", "error"),
    ServerSentEvent(""),
    ServerSentEvent("first line\n second line"),
    ServerSentEvent("[DONE]"),
]


def parse(pieces: list[bytes]) -> list[ServerSentEvent]:
    parser = SSEParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@given(cuts=st.lists(st.integers(0, 300)))
def test_cuts_make_no_difference(line_end, cuts):
    content = STREAM.replace("\n", line_end).encode()
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    pieces = [content[a:b] for a, b in pairwise(places)]
    assert parse(pieces) == EVENTS


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_byte_by_byte(line_end):
    content = STREAM.replace("\n", line_end).encode()
    assert parse([content[i : i + 1] for i in range(len(content))]) == EVENTS


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_an_event_comes_with_the_byte_that_completes_it(line_end):
    parser = SSEParser()
    assert parser.feed(b"data: x" + line_end) == []
    assert parser.feed(line_end[:1]) == [ServerSentEvent("x")]


def test_byte_order_mark_is_no_part_of_the_first_line():
    assert parse([b"\xef\xbb\xbfdata: x\n\n"]) == [ServerSentEvent("x")]


def test_bytes_that_are_no_text_are_shown_as_such():
    assert parse([b"data: a\xffb\n\n"]) == [ServerSentEvent("a�b")]
