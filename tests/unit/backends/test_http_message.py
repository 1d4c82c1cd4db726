import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.backends.http_message import Body, Head, read_head
from llmopt.errors import BackendError

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(pieces: list[bytes], *, ends: bool = True) -> tuple[Head, bytes, bool]:
    """Feed the pieces one by one, each after what it lets be read has been read."""

    async def main() -> tuple[Head, bytes, bool]:
        reader = asyncio.StreamReader(limit=1 << 10)

        async def feed() -> None:
            for piece in pieces:
                reader.feed_data(piece)
                await asyncio.sleep(0)
            if ends:
                reader.feed_eof()

        feeding = asyncio.create_task(feed())
        head = await read_head(reader)
        body, content = Body(reader, head), b""
        while piece := await body.read():
            content += piece
        await feeding
        return head, content, body.is_complete

    return asyncio.run(main())


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(at, len(content)) for at in cuts), len(content)]
    return [content[a:b] for a, b in pairwise(places)]


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    cuts=st.lists(st.integers(0, 300)),
    trailer=st.sampled_from([b"", b"X-Time: 3\r\nX-Other: 4\r\n"]),
)
def test_chunks_are_joined_however_they_are_cut(chunks, cuts, trailer):
    body = b"".join(b"%X;note=1\r\n%s\r\n" % (len(c), c) for c in chunks)
    head, content, is_complete = read(
        cut(CHUNKED + body + b"0\r\n" + trailer + b"\r\n", cuts), ends=False
    )
    assert (head.status, content, is_complete) == (200, b"".join(chunks), True)


@given(content=st.binary(max_size=100), cuts=st.lists(st.integers(0, 200)))
def test_length_that_is_given_is_read_and_no_more(content, cuts):
    message = b"HTTP/1.1 200\r\ncontent-LENGTH:%d \r\n\r\n%s" % (len(content), content)
    head, found, is_complete = read([*cut(message, cuts), b"HTTP/1.1"], ends=False)
    assert (found, is_complete, head.reason) == (content, True, "")


def test_body_without_a_length_ends_with_the_connection():
    head, content, _ = read([b"HTTP/1.0 200 OK\r\n\r\nab", b"cd"])
    assert content == b"abcd"
    assert not head.keeps_alive


def test_interim_answers_are_passed_over():
    head, content, _ = read(
        [
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            b"HTTP/1.1 429 No\r\ncontent-length: 1\r\n\r\n!",
        ]
    )
    assert (head.status, head.reason, content) == (429, "No", b"!")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"Transfer-Encoding: chunked\r\n", True),
        (b"Content-Length: 0\r\n", True),
        (b"Content-Length: 0\r\nConnection: close\r\n", False),
        (b"", False),
    ],
)
def test_a_connection_is_kept_where_the_body_has_an_end_of_its_own(fields, expected):
    end = b"0\r\n\r\n" if fields.startswith(b"T") else b""
    head, _, _ = read([b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + end])
    assert head.keeps_alive is expected


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\n", "in the middle of its answer's head"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 ok\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 5000, "not HTTP"),
        (CHUNKED, "in the middle of its answer"),
        (CHUNKED + b"5\r\nabc", "in the middle of its answer"),
        (CHUNKED + b"3\r\nabc\r\n", "in the middle of its answer"),
        (CHUNKED + b"3\r\nabcd\r\n", "framing"),
        (CHUNKED + b"xyz\r\n", "framing"),
        (CHUNKED + b"-3\r\nabc\r\n", "framing"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "framing"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", "in the middle of its answer"),
    ],
)
def test_what_is_cut_off_or_malformed_is_an_error(message, reason):
    with pytest.raises(BackendError, match=reason):
        read([message])


def test_a_piece_is_there_before_the_chunk_is():
    async def main() -> Any:
        reader = asyncio.StreamReader()
        body = Body(reader, Head(200, "", {"transfer-encoding": "chunked"}))
        reader.feed_data(b"8\r\nabcd")
        first = await body.read()
        reader.feed_data(b"efgh")  # without the line end that belongs to it
        return first, await body.read()

    assert asyncio.run(main()) == (b"abcd", b"efgh")
