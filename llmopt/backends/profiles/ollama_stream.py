"""The stream of Ollama's `/api/generate`: a JSON object on each line.

Source: https://docs.ollama.com/api/streaming and https://docs.ollama.com/api/usage. The last object
has `done`, the counts and the durations in nanoseconds; a count of zero is left out. Objects before
it do not say how many tokens they hold.
"""

from collections.abc import Iterator
from typing import Any

from llmopt.backends.http_chunks import REMEDY, parse_object
from llmopt.backends.protocol import TokenEvent
from llmopt.errors import BackendError

# Named as llama.cpp's timings are.
_DURATIONS = {
    "total_duration": "total_s",
    "load_duration": "load_s",
    "prompt_eval_duration": "prompt_s",
    "eval_duration": "predicted_s",
}


class OllamaStream:
    """What one stream has said so far."""

    content_type = "application/x-ndjson"

    def __init__(self) -> None:
        self._rest = b""  # of a line whose end has not come
        self._is_done = False

    def feed(self, piece: bytes) -> Iterator[TokenEvent]:
        """The events of the lines that `piece` completes. Raises BackendError for what is none."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield self._read(line.decode(errors="replace"))

    def close(self) -> None:
        """The stream has ended. Raises BackendError when it was not finished."""
        if not self._is_done:
            raise BackendError("the stream ended without a finish reason", REMEDY)

    def _read(self, line: str) -> TokenEvent:
        found = parse_object(line)
        thinking, text = found.get("thinking") or "", found.get("response") or ""
        has_text = bool(thinking or text)
        self._is_done = bool(found.get("done"))
        return TokenEvent(
            num_tokens=int(has_text),
            is_guess=has_text,
            is_reasoning=bool(thinking) and not text,
            text=thinking + text,
            finish_reason=(found.get("done_reason") or "stop") if self._is_done else None,
            has_choice=has_text,
            num_prompt_tokens=found.get("prompt_eval_count"),
            total_tokens=found.get("eval_count", 0) if self._is_done else None,
            server_timings_s=_seconds(found),
        )


def _seconds(found: dict[str, Any]) -> dict[str, float] | None:
    seconds = {name: found[field] / 1e9 for field, name in _DURATIONS.items() if found.get(field)}
    return seconds or None
