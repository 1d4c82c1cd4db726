"""HTTP/1.1 answers out of a stream of bytes: the head, then the body piece by piece.

Follows RFC 9112. Knows nothing about connections, requests or what a body means. The law: a piece
of the body is handed on as soon as its bytes are here, and a body that ends early is an error,
never a shorter body.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from llmopt.errors import BackendError

MAX_PIECE_BYTES = 1 << 16
REMEDY = "See the server's own log."


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and header fields; names are in lower case."""

    status: int
    reason: str
    fields: Mapping[str, str]

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection can carry another request when the body has been read."""
        ends_with_body = self.is_chunked or "content-length" in self.fields
        return ends_with_body and self.fields.get("connection", "").lower() != "close"

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks that say how long they are."""
        return self.fields.get("transfer-encoding", "").lower() == "chunked"


async def read_head(reader: asyncio.StreamReader) -> Head:
    """The head of the final answer; interim ones (1xx) are passed over. Raises BackendError."""
    while True:
        try:
            head = _parse_head(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError as error:
            what = "in the middle of its answer's head" if error.partial else "without an answer"
            raise BackendError(f"the server closed the connection {what}", REMEDY) from None
        except (asyncio.LimitOverrunError, ValueError):
            raise BackendError("the server's answer is not HTTP/1.1", REMEDY) from None
        if head.status >= 200:
            return head


class Body:
    """The body of an answer, read piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, head: Head) -> None:
        self._reader = reader
        self._is_chunked = head.is_chunked
        self._left: int | None = 0  # bytes of the chunk or of the body; None: until the end
        self._is_in_chunk = False  # or at the line end that follows its bytes
        if not self._is_chunked:
            length = head.fields.get("content-length")
            self._left = None if length is None else _parse_size(length, 10)
        self.is_complete = False

    async def read(self) -> bytes:
        """Some bytes, as soon as there are any; none at the end.

        Raises BackendError when the body is cut off or malformed.
        """
        try:
            piece = b"" if self.is_complete else await self._read()
        except asyncio.IncompleteReadError:
            message = "the server closed the connection in the middle of its answer"
            raise BackendError(message, REMEDY) from None
        except asyncio.LimitOverrunError:
            raise _malformed() from None
        self.is_complete = not piece
        return piece

    async def _read(self) -> bytes:
        if self._left is None:
            return await self._reader.read(MAX_PIECE_BYTES)
        if self._left == 0 and self._is_chunked:
            self._left = await self._next_chunk()
        if self._left == 0:
            return b""
        piece = await self._reader.read(min(self._left, MAX_PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", self._left)
        self._left -= len(piece)
        return piece

    async def _next_chunk(self) -> int:
        """Bytes of the next chunk; after the last one, which has none, come the trailer fields."""
        if self._is_in_chunk and await self._reader.readexactly(2) != b"\r\n":
            raise _malformed()
        self._is_in_chunk = True
        digits = (await self._reader.readuntil(b"\r\n")).partition(b";")[0]
        size = _parse_size(digits.decode("latin-1"), 16)
        while size == 0 and await self._reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return size


def _parse_head(lines: bytes) -> Head:
    """Raises ValueError where it is no head."""
    status_line, *field_lines = lines.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    version, status, *reason = status_line.split(" ", 2)
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    fields = {}
    for line in field_lines:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return Head(int(status), reason[0] if reason else "", fields)


def _parse_size(digits: str, base: int) -> int:
    try:
        size = int(digits, base)
    except ValueError:
        raise _malformed() from None
    if size < 0:
        raise _malformed()
    return size


def _malformed() -> BackendError:
    return BackendError("the server's answer breaks its own framing", REMEDY)
