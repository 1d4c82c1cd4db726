"""The stream of LMDeploy's `/generate`: server-sent events with counts of their own.

Source: https://lmdeploy.readthedocs.io/en/latest/llm/api_server.html and the schema that a server
shows at `/docs` (GenerateReqOutput, GenerateReqMetaOutput). The counts of `meta_info` are of the
request so far.
"""

from collections.abc import Iterator

from llmopt.backends.http_chunks import DONE, REMEDY, TokenCounts, object_of, parse_object
from llmopt.backends.protocol import TokenEvent
from llmopt.backends.sse import SSEParser
from llmopt.errors import BackendError


class LMDeployStream:
    """What one stream has said so far."""

    content_type = "text/event-stream"

    def __init__(self) -> None:
        self._parser = SSEParser()
        self._counts = TokenCounts()
        self._is_done = False

    def feed(self, piece: bytes) -> Iterator[TokenEvent]:
        """The events that `piece` completes. Raises BackendError for what is none."""
        for event in self._parser.feed(piece):
            if event.data != DONE:
                yield self._read(event.data)

    def close(self) -> None:
        """The stream has ended. Raises BackendError when it was not finished."""
        if not self._is_done:
            raise BackendError("the stream ended without a finish reason", REMEDY)

    def _read(self, data: str) -> TokenEvent:
        found = parse_object(data)
        counts = object_of(found, "meta_info")
        reason = object_of(counts, "finish_reason").get("type")
        self._is_done |= reason is not None
        return TokenEvent(
            num_tokens=self._counts.advance(counts.get("completion_tokens") or 0),
            text=found.get("text") or "",
            finish_reason=reason,
            num_prompt_tokens=counts.get("prompt_tokens"),
        )
