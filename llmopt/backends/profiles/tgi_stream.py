"""The stream of TGI's `/generate_stream`: server-sent events of one token each.

Source: https://huggingface.github.io/text-generation-inference/ (StreamResponse, StreamDetails,
ErrorResponse). The last event has `details`; no mark follows it. An error in the middle is an event
with `error` and `error_type`.
"""

from collections.abc import Iterator

from llmopt.backends.http_chunks import REMEDY, object_of, parse_object
from llmopt.backends.protocol import TokenEvent
from llmopt.backends.sse import SSEParser
from llmopt.errors import BackendError

_FINISH_REASONS = {"eos_token": "stop", "stop_sequence": "stop"}


class TgiStream:
    """What one stream has said so far."""

    content_type = "text/event-stream"

    def __init__(self) -> None:
        self._parser = SSEParser()
        self._num_tokens = 0
        self._is_done = False

    def feed(self, piece: bytes) -> Iterator[TokenEvent]:
        """The events that `piece` completes. Raises BackendError for what is none."""
        for event in self._parser.feed(piece):
            yield self._read(event.data)

    def close(self) -> None:
        """The stream has ended. Raises BackendError when it was not finished."""
        if not self._is_done:
            raise BackendError("the stream ended without a finish reason", REMEDY)

    def _read(self, data: str) -> TokenEvent:
        found = parse_object(data)
        token, details = object_of(found, "token"), object_of(found, "details")
        num_tokens = int(bool(token))
        self._num_tokens += num_tokens
        if not details:
            return TokenEvent(num_tokens, text=token.get("text") or "")
        self._is_done = True
        if (counted := details.get("generated_tokens")) != self._num_tokens:
            message = f"the server counts {counted} tokens and has sent {self._num_tokens}"
            raise BackendError(message, REMEDY)
        reason = details.get("finish_reason") or "stop"
        return TokenEvent(
            num_tokens,
            text=token.get("text") or "",
            finish_reason=_FINISH_REASONS.get(reason, reason),
            num_prompt_tokens=details.get("input_length"),
        )
