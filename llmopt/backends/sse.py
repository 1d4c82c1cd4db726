"""Server-sent events out of bytes, as they come.

Follows the HTML standard, section 9.2.6 (parsing an event stream). Knows nothing about HTTP or
JSON. The law: however the bytes are cut, in the middle of a character or of a line end, the events
are the same, and each comes out of the very piece of bytes that completes it.
"""

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its lines of data, joined by line feeds, and its type."""

    data: str
    event: str = "message"


class SSEParser:
    """What has been read of one stream. Comments, ids and retry times are dropped."""

    def __init__(self) -> None:
        self._rest = b""  # of a line whose end has not come
        self._ends_with_cr = False  # a line feed that comes next belongs to that line's end
        self._is_first_line = True
        self._data: list[bytes] = []
        self._event = b""

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """The events that `piece` completes; bytes that are no UTF-8 become U+FFFD."""
        if self._ends_with_cr and piece.startswith(b"\n"):
            self._ends_with_cr = False
            piece = piece[1:]
        if not piece:
            return []
        self._ends_with_cr = piece.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        return [event for line in lines if (event := self._read_line(line)) is not None]

    def _read_line(self, line: bytes) -> ServerSentEvent | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event = [], b""
        if not data:
            return None
        text = b"\n".join(data).decode(errors="replace")
        return ServerSentEvent(text, event.decode(errors="replace") or "message")
