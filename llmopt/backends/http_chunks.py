"""Token events out of the chunks of an OpenAI-compatible stream.

Source: OpenAI API reference, the completion and chat completion chunk objects; llama.cpp's
`timings` from its server's README. Knows nothing about HTTP. The laws: a chunk is not a token: an
event's tokens are counted by the server where it says how many there are; a stream that ends
without a finish reason, or contradicts itself, has failed.
"""

import json
from collections.abc import Mapping
from typing import Any

from llmopt.backends.protocol import TokenEvent
from llmopt.backends.sse import ServerSentEvent
from llmopt.errors import BackendError

DONE = "[DONE]"
REMEDY = "See the server's own log."
_TEXT_FIELDS = ("content", "reasoning_content", "reasoning")  # of a chat's delta
_MAX_EXCERPT = 200


class ChunkReader:
    """What one stream has said so far."""

    def __init__(self) -> None:
        self._num_counted = 0
        self._is_guessed = False  # an event with text did not say how many tokens it holds
        self._finish_reason: str | None = None

    def read(self, event: ServerSentEvent) -> TokenEvent | None:
        """What the event brings; None for the mark at the end. Raises BackendError."""
        if event.data == DONE:
            return None
        chunk = _parse(event)
        choice = _first_choice(chunk)
        usage, timings = _object(chunk, "usage"), _object(chunk, "timings")
        finish_reason = choice.get("finish_reason")
        self._finish_reason = finish_reason or self._finish_reason
        has_text, server_count = _has_text(choice), _server_count(usage, timings)
        num_tokens, total = self._count(has_text, server_count)
        return TokenEvent(
            num_tokens=num_tokens,
            is_guess=has_text and self._is_guessed,
            has_choice=bool(choice),
            finish_reason=finish_reason,
            num_prompt_tokens=usage.get("prompt_tokens"),
            num_cached_tokens=_object(usage, "prompt_tokens_details").get("cached_tokens"),
            total_tokens=total,
            server_timings_s=_seconds(timings),
        )

    def close(self) -> None:
        """The stream has ended. Raises BackendError when it was not finished."""
        if self._finish_reason is None:
            raise BackendError("the stream ended without a finish reason", REMEDY)

    def _count(self, has_text: bool, server_count: int | None) -> tuple[int, int | None]:
        """Tokens of this event, and the total of a stream whose events did not say theirs."""
        if server_count is None or self._is_guessed:
            self._is_guessed |= has_text
            self._num_counted += has_text
            return int(has_text), server_count
        num_tokens = server_count - self._num_counted
        if num_tokens < 0:
            raise BackendError(
                f"the server counts {server_count} tokens after {self._num_counted}", REMEDY
            )
        self._num_counted = server_count
        return num_tokens, None


def _parse(event: ServerSentEvent) -> dict[str, Any]:
    try:
        chunk = json.loads(event.data)
    except ValueError:
        raise BackendError(f"an event is not JSON: {_excerpt(event.data)}", REMEDY) from None
    if not isinstance(chunk, dict):
        raise BackendError(f"an event is not an object: {_excerpt(event.data)}", REMEDY)
    if event.event == "error" or chunk.get("error") or chunk.get("object") == "error":
        raise BackendError(f"the server broke off: {error_message(event.data)}", REMEDY)
    return chunk


def error_message(body: str) -> str:
    """What a body says went wrong, if it is an error as OpenAI or FastAPI write them."""
    try:
        found = json.loads(body)
    except ValueError:
        return _excerpt(body)
    for key in ("error", "detail", "message"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return _excerpt(found if isinstance(found, str) else json.dumps(found))


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that is an object; empty where it is missing, null or something else."""
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def _first_choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = chunk.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return {}


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = _object(choice, "delta")
    return bool(choice.get("text")) or any(delta.get(name) for name in _TEXT_FIELDS)


def _server_count(usage: Mapping[str, Any], timings: Mapping[str, Any]) -> int | None:
    """Tokens of the request so far, where the server counts them: vLLM's and SGLang's usage with
    every chunk, llama.cpp's timings with every token, or the usage at the end.
    """
    for counts, name in ((usage, "completion_tokens"), (timings, "predicted_n")):
        if isinstance(count := counts.get(name), int):
            return count
    return None


def _seconds(timings: Mapping[str, Any]) -> dict[str, float] | None:
    """llama.cpp's timings: every `*_ms` in seconds."""
    seconds = {
        f"{name.removesuffix('_ms')}_s": value / 1000
        for name, value in timings.items()
        if name.endswith("_ms") and isinstance(value, int | float)
    }
    return seconds or None


def _excerpt(text: str) -> str:
    return text if len(text) <= _MAX_EXCERPT else text[:_MAX_EXCERPT] + " ..."
