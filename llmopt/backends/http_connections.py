"""Connections to one server, kept open and used again, for a client that takes times.

A general HTTP client spends about a millisecond of this process per request and walks its list of
connections for each; at a thousand requests per second it would measure itself. Knows nothing about
what is asked. The laws: there is no limit on the connections, since one would be a hidden queue; a
request is never sent twice, so none goes out on a connection that the server may be closing; what
was opened is closed with the event loop that it was opened on.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

from llmopt.backends.http_message import REMEDY, Body, Head, read_head
from llmopt.errors import BackendError, UsageError

CONNECT_TIMEOUT_S = 30.0
MAX_IDLE_S = 2.0  # servers end an idle connection after 5 s (uvicorn, llama.cpp) or later
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body is still coming."""

    head: Head
    body: Body


@dataclass(frozen=True, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used_s: float  # when it was used last, on the loop's clock

    @property
    def is_usable(self) -> bool:
        idle_s = asyncio.get_running_loop().time() - self.used_s
        return idle_s < MAX_IDLE_S and not self.reader.at_eof() and not self.writer.is_closing()


class HttpConnections:
    """The open connections to the server at `url`.

    reuses: False for a server that ends each after one answer, without saying so
    """

    def __init__(self, url: str, *, reuses: bool = True) -> None:
        self._url = _split(url)
        self._reuses = reuses
        self._ssl = ssl.create_default_context() if self._url.scheme == "https" else None
        self._idle: list[_Connection] = []
        self._keeper: asyncio.Task[None] | None = None
        self.num_opened = 0

    @asynccontextmanager
    async def post(
        self, path: str, fields: Mapping[str, str], content: bytes
    ) -> AsyncIterator[Answer]:
        """Send one request; leaving the context early closes its connection.

        Raises BackendError where there is no connection or no answer.
        """
        connection = await self._take()
        is_reusable = False
        try:
            connection.writer.write(self._request_head(path, fields, len(content)) + content)
            await connection.writer.drain()
            head = await read_head(connection.reader)
            body = Body(connection.reader, head)
            yield Answer(head, body)
            is_reusable = self._reuses and body.is_complete and head.keeps_alive
        except OSError as error:
            message = f"the connection to {self._url.netloc} broke: {error}"
            raise BackendError(message, REMEDY) from None
        finally:
            if is_reusable:
                now_s = asyncio.get_running_loop().time()
                self._idle.append(replace(connection, used_s=now_s))
            else:
                connection.writer.transport.abort()

    def _request_head(self, path: str, fields: Mapping[str, str], num_bytes: int) -> bytes:
        lines = [
            f"POST {self._url.path}{path} HTTP/1.1",
            f"Host: {self._url.netloc}",
            f"Content-Length: {num_bytes}",
            *([] if self._reuses else ["Connection: close"]),
            *(f"{name}: {value}" for name, value in fields.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def _take(self) -> _Connection:
        """The connection that was used last, or a new one."""
        if self._keeper is None or self._keeper.get_loop() is not asyncio.get_running_loop():
            assert not self._idle, "the connections of a loop are closed with it"
            self._keeper = asyncio.create_task(self._keep())
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.writer.transport.abort()
        return await self._open()

    async def _open(self) -> _Connection:
        port = self._url.port or (443 if self._ssl else 80)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    self._url.hostname, port, ssl=self._ssl, limit=_BUFFER_BYTES
                )
        except OSError as error:  # TimeoutError is one
            raise BackendError(
                f"no connection to {self._url.netloc}: {str(error) or 'it took too long'}",
                "See whether the server runs, and listens at that address.",
            ) from None
        self.num_opened += 1
        return _Connection(reader, writer, asyncio.get_running_loop().time())

    async def _keep(self) -> None:
        """Wait for the end of the event loop, which cancels its tasks, and close what is open."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for connection in self._idle:
                connection.writer.transport.abort()
            self._idle.clear()
            await asyncio.sleep(0)  # a transport lets go of its socket in the loop's next turn


def _split(url: str) -> SplitResult:
    """Raises UsageError for what is no address of a server."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        is_address = False
    if not is_address or parts.query or parts.username:
        raise UsageError(f"not the address of a server: {url}", "Give http://HOST:PORT.")
    return parts
