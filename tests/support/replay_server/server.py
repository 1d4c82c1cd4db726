"""The server: routes by method and path, answers in chunks, keeps what it was asked."""

import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any

from .exchange import Exchange


class ReplayServer:
    """Listens as long as the context lasts; what it answers can be exchanged at any time."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], Exchange] = {}
        self.requests: list[tuple[str, str, Any]] = []  # method, path, JSON of the body
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))

    def play(self, exchanges: Iterable[Exchange]) -> None:
        """Answer these, and 404 to everything else; of two at one path the last one counts."""
        self._answers = {(e.method, e.path): e for e in exchanges}
        self.requests.clear()

    def answer_to(self, method: str, path: str) -> Exchange | None:
        return self._answers.get((method, path))

    def __enter__(self) -> "ReplayServer":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler_of(replay: ReplayServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 0

        def setup(self) -> None:
            super().setup()
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client went
                super().handle()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = json.loads(content) if content else None
            replay.requests.append((self.command, self.path, asked))
            exchange = replay.answer_to(self.command, self.path)
            if exchange is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(exchange.status)
            self.send_header("Content-Type", exchange.content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in exchange.pieces:
                chunk = piece.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
