"""The stream of an answer, whatever its dialect: bytes in, token events out.

Knows nothing about connections. The law: however the bytes are cut, the events are the same, and
each comes out of the very piece of bytes that completes it.
"""

from collections.abc import Iterator
from typing import Protocol

from llmopt.backends.http_chunks import ChunkReader
from llmopt.backends.protocol import TokenEvent
from llmopt.backends.sse import SSEParser


class StreamReader(Protocol):
    """What one stream has said so far."""

    @property
    def content_type(self) -> str:
        """How the field `Content-Type` of such an answer begins."""
        ...

    def feed(self, piece: bytes) -> Iterator[TokenEvent]:
        """The events that `piece` completes. Raises BackendError for what is none."""
        ...

    def close(self) -> None:
        """The stream has ended. Raises BackendError when it was not finished."""
        ...


class OpenAIStream:
    """Server-sent events that hold OpenAI's chunks."""

    content_type = "text/event-stream"

    def __init__(self) -> None:
        self._parser = SSEParser()
        self._chunks = ChunkReader()

    def feed(self, piece: bytes) -> Iterator[TokenEvent]:
        """The events that `piece` completes, the mark at the end left out."""
        for event in self._parser.feed(piece):
            tokens = self._chunks.read(event)
            if tokens is not None:
                yield tokens

    def close(self) -> None:
        """The stream has ended. Raises BackendError when it was not finished."""
        self._chunks.close()
